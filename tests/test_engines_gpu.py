"""TensorRT's engines, as far as a machine without a GPU can tell.

TensorRT-RTX builds real ones, torch-tensorrt says what it covers, and the code that runs engines
runs ONNX graphs instead, in memory that the same calls have prepared.
"""

import ctypes
import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pytest

from vdeblur import backend as backends
from vdeblur import tensorrt
from vdeblur.backend import open_backend
from vdeblur.blocks import MOTION, TILE
from vdeblur.bundle import Bundle, read_bundle
from vdeblur.engine import find_engine, save_engine, target_of
from vdeblur.errors import DeviceError, EngineError
from vdeblur.frame import through
from vdeblur.motion import MotionStage
from vdeblur.restore import Restorer
from vdeblur.runtimes import OnnxBackend
from vdeblur.tensorrt import TensorRtBackend, bucket
from vdeblur_engines.compile import NO_GPU, compile_bundle
from vdeblur_engines.gpu import build_rtx, profile_of
from vdeblur_engines.typed import typed_graph
from vdeblur_engines.verify import open_engine, rendered_clips

LARGEST = 8
"""Blocks that the fake engine takes."""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture(scope="module")
def fast() -> Bundle:
    return read_bundle("fast")


@pytest.mark.parametrize(
    ("precision", "max_batch"), [("fp32", 32), ("fp16", 2), ("fp16", 128), ("bf16", 32)]
)
def test_tensorrt_rtx_builds_engines_of_the_shipped_model(
    precision: str, max_batch: int, fast: Bundle, tensorrt_rtx: Any
) -> None:
    parts = build_rtx(fast, precision, profile_of(fast, max_batch))
    assert parts.keys() == set(fast.parts)
    # An engine holds its weights, as half of them as its precision is wide.
    assert all(len(data) > fast.graph(part).stat().st_size for part, data in parts.items())


def test_tensorrt_rtx_builds_engines_of_a_second_stage(tensorrt_rtx: Any) -> None:
    best = read_bundle("best")
    assert build_rtx(best, "fp16", profile_of(best, 4)).keys() == set(best.parts)


def test_an_engine_that_is_built_without_a_gpu_is_kept_and_not_run(
    fast: Bundle, tensorrt_rtx: Any
) -> None:
    made = compile_bundle(fast, "tensorrt-rtx", "fp16", max_batch=4).engine
    assert made.target.device == NO_GPU
    assert made.target.max_batch == 4
    assert made.target.versions["tensorrt-rtx"] == tensorrt_rtx.__version__
    assert find_engine(target_of(fast, "tensorrt-rtx", "fp16", device=NO_GPU)) == made
    other = compile_bundle(fast, "tensorrt-rtx", "fp16", max_batch=8).engine
    assert other.folder != made.folder
    if backends.has_cuda():
        pytest.skip("there is a GPU")
    with pytest.raises(DeviceError, match="there is no GPU"):
        open_engine(fast, made)
    with pytest.raises(DeviceError, match="no CUDA device"):
        open_backend("fast", backend="tensorrt-rtx")


def test_what_the_library_does_not_read_is_told(
    fast: Bundle, tensorrt_rtx: Any, tmp_path: Path
) -> None:
    graph = tmp_path / "encoder.onnx"
    graph.write_bytes(b"no graph")
    profile = {"encoder": profile_of(fast, 4)["encoder"]}
    spoilt = Bundle(tmp_path, "spoilt", fast.clusters, 1.0, (), fast.context_channels)
    with pytest.raises(EngineError, match="cannot read the graph"):
        build_rtx(spoilt, "fp32", profile)


@pytest.mark.parametrize(("model", "precisions"), [("fast", ["fp32", "fp16"]), ("best", ["fp16"])])
def test_torch_tensorrt_covers_every_operator_in_one_engine_a_graph(
    model: str, precisions: list[str], tensorrt_rtx: Any
) -> None:
    program = Path(__file__).with_name("torch_tensorrt_dry_run.py")
    done = subprocess.run(
        [sys.executable, str(program), model, *precisions],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert list(told) == precisions
    for graphs in told.values():
        assert graphs.keys() == set(read_bundle(model).parts)
        for coverage in graphs.values():
            assert coverage["operators"] > 20
            assert coverage["covered"] == coverage["operators"]
            assert (coverage["engines"], coverage["unsupported"]) == (1, [])


def test_batches_are_padded_to_few_sizes() -> None:
    assert [bucket(count, 24) for count in (1, 2, 3, 4, 5, 8, 9, 16, 17, 24)] == [
        2, 2, 4, 4, 8, 8, 16, 16, 24, 24,
    ]  # fmt: skip


def test_a_profile_holds_frames_of_any_size_and_blocks_up_to_the_batch(fast: Bundle) -> None:
    profile = profile_of(fast, 12)
    assert profile["encoder"] == {
        "luma": [[1, 1, 64, 64], [1, 1, 768, 1280], [1, 1, 4352, 8192]],
        "around": [[1, 2, 32, 32], [1, 2, 384, 640], [1, 2, 2176, 4096]],
        "motion": [[1, 5, 8, 8], [1, 5, 96, 160], [1, 5, 544, 1024]],
    }
    assert profile["filter_2"]["luma"] == [[n, 3, TILE, TILE] for n in (1, 6, 12)]
    with pytest.raises(ValueError, match="at least 2"):
        profile_of(fast, 1)


class FakeContext:
    """Runs a graph with ONNX Runtime on the memory whose addresses it is given."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        floats = np.dtype("float32")
        kinds: dict[str, np.dtype[Any]] = {"context": floats, "motion": floats}
        names = [each.name for each in session.get_inputs()]
        self._given = {name: kinds.get(name, np.dtype("uint8")) for name in names}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self.launches = 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shapes[name] = shape
        return shape[0] <= LARGEST and shape[-1] <= 512

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self._shapes:
            return self._shapes[name]
        zeros = {key: np.zeros(self._shapes[key], kind) for key, kind in self._given.items()}
        (found,) = self._session.run([name], zeros)
        return tuple(np.asarray(found).shape)

    def set_tensor_address(self, name: str, address: int) -> None:
        self._addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        self.launches += 1
        given = {key: self._memory(key, kind) for key, kind in self._given.items()}
        names = [each.name for each in self._session.get_outputs()]
        for name, found in zip(names, self._session.run(names, given), strict=True):
            self._memory(name, np.dtype("float32"))[:] = found
        return True

    def _memory(self, name: str, kind: np.dtype[Any]) -> Any:
        shape = self.get_tensor_shape(name)
        size = int(np.prod(shape)) * kind.itemsize
        data: Any = (ctypes.c_byte * size).from_address(self._addresses[name])
        return np.frombuffer(data, kind).reshape(shape)


class FakeEngine:
    """The calls of a TensorRT engine, answered from an ONNX graph."""

    def __init__(self, data: bytes) -> None:
        self._session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        self._inputs = [each.name for each in self._session.get_inputs()]
        self._names: list[str] = self._inputs + [each.name for each in self._session.get_outputs()]
        self.num_io_tensors = len(self._names)
        self.contexts: list[FakeContext] = []

    def get_tensor_name(self, index: int) -> str:
        return self._names[index]

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name in self._inputs else "output"

    def get_tensor_dtype(self, name: str) -> str:
        return "u8" if name in ("luma", "around", "chroma") else "f32"

    def create_execution_context(self) -> FakeContext:
        self.contexts.append(FakeContext(self._session))
        return self.contexts[-1]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[FakeEngine]:
    """A library in TensorRT-RTX's place; the engines that it has loaded."""
    engines: list[FakeEngine] = []

    class Runtime:
        def __init__(self, logger: object) -> None: ...

        def deserialize_cuda_engine(self, data: bytes) -> FakeEngine | None:
            if data == b"junk":
                return None
            engines.append(FakeEngine(data))
            return engines[-1]

    class Logger:
        ERROR = 1

        def __init__(self, level: int) -> None: ...

    library = SimpleNamespace(
        Runtime=Runtime,
        Logger=Logger,
        TensorIOMode=SimpleNamespace(INPUT="input"),
        DataType=SimpleNamespace(UINT8="u8", FLOAT="f32", HALF="f16", BF16="bf16"),
    )
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", library)
    return engines


def loaded(bundle: Bundle, precision: str = "fp32", device: str = "cpu") -> TensorRtBackend:
    parts = {part: typed_graph(bundle.graph(part), precision) for part in bundle.parts}
    return TensorRtBackend(
        bundle, "tensorrt-rtx", precision, parts, max_batch=LARGEST, device=device
    )


def blocks(count: int, seed: int = 0) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    return (
        rng.integers(0, 256, (count, 3, TILE, TILE), np.uint8),
        rng.integers(0, 256, (count, 2, TILE // 2, TILE // 2), np.uint8),
        rng.standard_normal((count, 41, TILE // 8, TILE // 8)).astype(np.float32),
    )


def close(found: tuple[Any, Any], expected: tuple[Any, Any], share: float) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() <= share * np.abs(theirs).max()


def test_frames_stay_on_the_device_of_an_engine(fast: Bundle, fake: list[FakeEngine]) -> None:
    (clip,) = rendered_clips(blurs=(4.0,), frames=3)
    left = [
        replace(each, planes=tuple(plane[:, : plane.shape[1] // 2] for plane in each.planes))
        for each in clip.blurred
    ]
    frames = list(through(MotionStage(), left))
    backend = loaded(fast, device="cpu:0")
    found, expected = (
        list(through(Restorer(each, strength=1.0), frames)) for each in (backend, OnnxBackend(fast))
    )
    for ours, theirs in zip(found, expected, strict=True):
        assert cv2.PSNR(ours.planes[0], theirs.planes[0]) > 50
    seen = blocks(LARGEST)  # of a size for which buffers were made meanwhile
    close(backend.apply(1, *seen), OnnxBackend(fast).apply(1, *seen), 1e-4)


@pytest.mark.parametrize(("precision", "share"), [("fp32", 1e-5), ("fp16", 0.03)])
def test_the_runtime_gives_engines_their_inputs_and_takes_their_outputs(
    precision: str, share: float, fast: Bundle, fake: list[FakeEngine]
) -> None:
    backend, reference = loaded(fast, precision), OnnxBackend(fast)
    luma = np.random.default_rng(1).integers(0, 256, (1, 128, 192), np.uint8)
    around = np.random.default_rng(3).integers(0, 256, (2, 64, 96), np.uint8)
    motion = np.random.default_rng(2).normal(size=(MOTION, 16, 24)).astype(np.float32)
    close(backend.embed(luma, around, motion), reference.embed(luma, around, motion), share)
    for count in (1, 3, LARGEST, 2 * LARGEST + 1):
        given = blocks(count, seed=count)
        close(backend.apply(2, *given), reference.apply(2, *given), share)


def test_what_was_prepared_for_a_size_serves_again(fast: Bundle, fake: list[FakeEngine]) -> None:
    backend, reference = loaded(fast), OnnxBackend(fast)
    first = backend.apply(1, *blocks(4))
    kept = tuple(each.copy() for each in first)
    second = backend.apply(1, *blocks(3, seed=9))
    close(second, reference.apply(1, *blocks(3, seed=9)), 1e-5)
    (context,) = fake[1].contexts  # 3 blocks are padded to 4
    assert context.launches == 2
    for before, after in zip(kept, first, strict=True):
        np.testing.assert_array_equal(before, after)


def test_a_frame_that_is_too_large_is_told(fast: Bundle, fake: list[FakeEngine]) -> None:
    with pytest.raises(DeviceError, match="does not take luma of 1x1x64x576"):
        loaded(fast).embed(
            np.zeros((1, 64, 576), np.uint8),
            np.zeros((2, 32, 288), np.uint8),
            np.zeros((MOTION, 8, 72), np.float32),
        )


@pytest.fixture
def pretended_gpu(monkeypatch: pytest.MonkeyPatch, fake: list[FakeEngine]) -> None:
    """`open_backend` finds a GPU, on which everything happens in the CPU's memory."""

    class OnCpu(TensorRtBackend):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options, device="cpu")

    monkeypatch.setattr(backends, "has_cuda", lambda: True)
    monkeypatch.setattr(tensorrt, "gpu_device", lambda: "a GPU (9.0)")
    monkeypatch.setattr(tensorrt, "TensorRtBackend", OnCpu)
    monkeypatch.setattr(backends, "TorchBackend", lambda bundle, device: f"torch on {device}")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: name == "tensorrt_rtx" or (name != "tensorrt" and find(name)),
    )


def keep(bundle: Bundle, data: bytes | None = None, device: str = "a GPU (9.0)") -> None:
    target = target_of(
        bundle, "tensorrt-rtx", "fp16", device=device, profile=profile_of(bundle, LARGEST)
    )
    save_engine(
        target, {part: data or typed_graph(bundle.graph(part), "fp16") for part in bundle.parts}
    )


@pytest.mark.usefixtures("pretended_gpu")
def test_a_gpu_s_engine_is_used_by_itself(fast: Bundle) -> None:
    keep(fast)
    opened = open_backend("fast")
    assert opened.name == "tensorrt-rtx fp16 engine"
    assert opened.apply(1, *blocks(3))[0].shape == (3, 72, 72)


@pytest.mark.usefixtures("pretended_gpu")
@pytest.mark.parametrize(
    ("options", "reason"),
    [({"data": b"junk"}, "cannot load the engine"), ({"device": "an old GPU"}, "an old GPU")],
)
def test_a_wrong_engine_of_a_gpu_is_told_and_torch_takes_its_place(
    options: dict[str, Any], reason: str, fast: Bundle
) -> None:
    keep(fast, **options)
    warnings: list[str] = []
    assert open_backend("fast", warn=warnings.append) == "torch on cuda"  # type: ignore[comparison-overlap]
    assert len(warnings) == 1
    assert reason in warnings[0]
    with pytest.raises(DeviceError, match="'vdeblur compile --backend tensorrt-rtx' makes one"):
        open_backend("fast", backend="tensorrt-rtx", warn=warnings.append)
