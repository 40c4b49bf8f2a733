"""Engines: how they are kept, found, refused and held against the reference."""

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import Any

import cv2
import numpy as np
import pytest

from vdeblur import engine as store
from vdeblur.backend import chosen_model, open_backend, stages_of
from vdeblur.blocks import MOTION, TILE
from vdeblur.bundle import Bundle, read_bundle
from vdeblur.cli import main
from vdeblur.demo import picture_of_demo
from vdeblur.engine import (
    Engine,
    Target,
    cpu_device,
    engines_folder,
    find_engine,
    read_engine,
    save_engine,
    target_of,
)
from vdeblur.errors import DeviceError, EngineError, ModelError, SinkError, SourceError
from vdeblur.runtimes import OnnxBackend
from vdeblur_engines.compile import compile_bundle
from vdeblur_engines.speed import measure
from vdeblur_engines.typed import typed_graph
from vdeblur_engines.verify import (
    Clip,
    compare,
    open_engine,
    pictures_in,
    reference_of,
    rendered_clips,
    verify_engines,
)

TARGET = Target(
    model="some model",
    backend="openvino",
    precision="int8",
    graphs={"encoder": "1", "filter_1": "2"},
    device="a processor",
    versions={"openvino": "1.0"},
    profile={},
)
PARTS = {"encoder": b"one", "filter_1": b"two"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def fast() -> Bundle:
    return read_bundle("fast")


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    return list(rendered_clips(blurs=(4.0,), frames=3))


def test_an_engine_comes_back_as_it_was_saved() -> None:
    saved = save_engine(TARGET, PARTS)
    found = find_engine(TARGET)
    assert found == saved == Engine(TARGET.folder, TARGET, PARTS)


def test_engines_lie_in_the_cache_folder_as_bytes_and_json(own_cache: Path) -> None:
    folder = save_engine(TARGET, PARTS).folder
    assert folder.parent == own_cache / "vdeblur" / "engines"
    assert {path.name for path in folder.iterdir()} == {
        "manifest.json",
        "encoder.engine",
        "filter_1.engine",
    }
    assert (folder / "encoder.engine").read_bytes() == b"one"
    json.loads((folder / "manifest.json").read_text())


def test_a_relative_cache_folder_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    assert engines_folder() == Path.home() / ".cache" / "vdeblur" / "engines"


@pytest.mark.parametrize(
    "change",
    [
        {"graphs": {"encoder": "1", "filter_1": "3"}},
        {"device": "another"},
        {"versions": {"openvino": "1.1"}},
        {"profile": {"filter_1": {"luma": [[1], [2], [3]]}}},
        {"precision": "fp32"},
        {"backend": "onnx"},
        {"format": 0},
    ],
)
def test_the_key_holds_everything(change: dict[str, Any]) -> None:
    assert replace(TARGET, **change).key != TARGET.key


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"graphs": {"encoder": "1", "filter_1": "3"}}, "another version of the model"),
        ({"device": "another"}, "made for a processor, and here is another"),
        ({"versions": {"openvino": "1.1"}}, "made with openvino 1.0, and here is 1.1"),
        ({"format": 0}, "another version of vdeblur"),
    ],
)
def test_an_engine_for_something_else_is_refused(change: dict[str, Any], reason: str) -> None:
    save_engine(TARGET, PARTS)
    with pytest.raises(EngineError, match=reason):
        find_engine(replace(TARGET, **change))


def test_an_engine_with_another_profile_or_beside_wrong_ones_is_found() -> None:
    profile = {"filter_1": {"luma": [[1], [2], [3]]}}
    right = save_engine(replace(TARGET, profile=profile), PARTS)
    save_engine(replace(TARGET, versions={"openvino": "0.9"}), PARTS)
    save_engine(replace(TARGET, precision="fp32"), PARTS)
    assert find_engine(TARGET) == right
    assert right.target.max_batch == 3


def test_no_engine_is_no_error() -> None:
    assert find_engine(TARGET) is None


def _cut(folder: Path) -> None:
    (folder / "encoder.engine").write_bytes(b"on")


def _swap(folder: Path) -> None:
    (folder / "encoder.engine").write_bytes(b"eno")


def _remove(folder: Path) -> None:
    (folder / "filter_1.engine").unlink()


def _spoil_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"files": {}, "target": 3}')


def _lose_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


DAMAGES = [_cut, _swap, _remove, _spoil_manifest, _lose_manifest]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_engine_is_refused_and_replaced(damage: Callable[[Path], None]) -> None:
    folder = save_engine(TARGET, PARTS).folder
    damage(folder)
    with pytest.raises(EngineError, match="is damaged"):
        find_engine(TARGET)
    save_engine(TARGET, PARTS)
    assert find_engine(TARGET) == Engine(folder, TARGET, PARTS)
    assert list(engines_folder().iterdir()) == [folder]


@pytest.mark.parametrize("damaged", [False, True])
def test_programs_that_save_at_the_same_time_leave_one_whole_engine(damaged: bool) -> None:
    if damaged:
        _cut(save_engine(TARGET, PARTS).folder)
    barrier = Barrier(8)

    def save(number: int) -> Engine:
        barrier.wait()
        return save_engine(TARGET, {part: data * number for part, data in PARTS.items()})

    with ThreadPoolExecutor(8) as pool:
        saved = list(pool.map(save, range(1, 9)))
    kept = read_engine(TARGET.folder)
    assert kept in saved
    assert list(engines_folder().iterdir()) == [TARGET.folder]


def test_what_cannot_be_written_completely_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    write = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if path.name == "filter_1.engine":
            raise OSError(28, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(SinkError, match="No space left"):
        save_engine(TARGET, PARTS)
    assert list(engines_folder().iterdir()) == []


def test_a_cache_that_is_no_folder_is_told(own_cache: Path) -> None:
    own_cache.write_text("a file")
    with pytest.raises(SinkError, match="cannot write an engine"):
        save_engine(TARGET, PARTS)


def test_a_cache_that_may_not_be_entered_holds_no_engines(
    monkeypatch: pytest.MonkeyPatch, closed: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(closed))
    assert find_engine(TARGET) is None
    assert list(store.known_engines()) == []


def test_outdated_engines_of_this_device_are_removed_and_no_others() -> None:
    old = save_engine(replace(TARGET, versions={"openvino": "0.9"}), PARTS).folder
    others = [
        save_engine(replace(TARGET, device="another"), PARTS).folder,
        save_engine(replace(TARGET, precision="fp32"), PARTS).folder,
        save_engine(replace(TARGET, model="some model-openvino"), PARTS).folder,
    ]
    damaged = save_engine(replace(TARGET, versions={"openvino": "0.8"}), PARTS).folder
    _cut(damaged)
    assert set(store.remove_stale(TARGET)) == {old, damaged}
    assert sorted(engines_folder().iterdir()) == sorted(others)


BACKENDS = [("openvino", "int8", "openvino"), ("openvino", "fp32", "openvino-fp32")]
BACKENDS += [("onnx", "fp32", "onnxruntime")]


def blocks(count: int, bundle: Bundle) -> tuple[Any, Any, Any]:
    """Inputs of a filter."""
    rng = np.random.default_rng(3)
    channels = bundle.context_channels
    return (
        rng.integers(0, 256, (count, 3, TILE, TILE), np.uint8),
        rng.integers(0, 256, (count, 2, TILE // 2, TILE // 2), np.uint8),
        rng.standard_normal((count, channels, TILE // 8, TILE // 8)).astype(np.float32),
    )


@pytest.mark.parametrize(("backend", "precision", "name"), BACKENDS)
def test_a_compiled_engine_is_used_and_computes_the_same(
    backend: str, precision: str, name: str, fast: Bundle
) -> None:
    plain = open_backend(fast.folder, device="cpu", backend=name)
    made = compile_bundle(fast, backend, precision)
    warnings: list[str] = []
    engine = open_backend(fast.folder, device="cpu", backend=name, warn=warnings.append)
    assert made.seconds > 0
    assert (engine.name, warnings) == (f"{plain.name} engine", [])
    luma = np.random.default_rng(1).integers(0, 256, (1, 128, 192), np.uint8)
    around = np.random.default_rng(3).integers(0, 256, (2, 64, 96), np.uint8)
    motion = np.random.default_rng(2).normal(size=(MOTION, 16, 24)).astype(np.float32)
    frames = (each.embed(luma, around, motion) for each in (engine, plain))
    for ours, theirs in zip(*frames, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    given = blocks(3, fast)
    for cluster in range(1, len(fast.clusters)):
        for ours, theirs in zip(
            engine.apply(cluster, *given), plain.apply(cluster, *given), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)


def test_an_engine_is_made_once_and_again_if_it_is_damaged(fast: Bundle) -> None:
    first = compile_bundle(fast, "onnx")
    again = compile_bundle(fast, "onnx")
    assert (again.seconds, again.engine) == (0.0, first.engine)
    _cut(first.engine.folder)
    third = compile_bundle(fast, "onnx")
    assert third.seconds > 0
    assert read_engine(first.engine.folder) == third.engine
    assert compile_bundle(fast, "onnx", force=True).seconds > 0


def junk(bundle: Bundle, backend: str, precision: str, **change: Any) -> None:
    """Save something that is no engine, whole, for this machine, except for `change`."""
    target = target_of(bundle, backend, precision, device=cpu_device())
    save_engine(replace(target, **change), dict.fromkeys(target.graphs, b"junk"))


@pytest.mark.parametrize(("backend", "precision", "name"), BACKENDS)
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, "cannot load the engine of {first}"),
        ({"device": "an abacus"}, "an abacus"),
        ({"versions": {"vdeblur": "0"}}, "made with"),
    ],
)
def test_a_wrong_engine_is_told_in_a_line_and_not_used(
    backend: str, precision: str, name: str, change: dict[str, Any], reason: str, fast: Bundle
) -> None:
    junk(fast, backend, precision, **change)
    warnings: list[str] = []
    opened = open_backend(fast.folder, device="cpu", backend=name, warn=warnings.append)
    assert not opened.name.endswith("engine")
    assert len(warnings) == 1
    first = "filter_1" if precision == "int8" else "encoder"
    assert reason.format(first=first) in warnings[0]
    assert "\n" not in warnings[0]
    assert "'vdeblur compile'" in warnings[0]


def test_another_model_of_the_same_name_does_not_use_the_engine(
    fast: Bundle, tmp_path: Path
) -> None:
    compile_bundle(fast, "onnx")
    other = tmp_path / "other"
    shutil.copytree(fast.folder, other)
    (other / "filter_1.onnx").write_bytes((other / "filter_2.onnx").read_bytes())
    warnings: list[str] = []
    opened = open_backend(other, device="cpu", backend="onnxruntime", warn=warnings.append)
    assert opened.name == "onnxruntime fp32"
    assert "another version of the model" in warnings[0]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (("onnx", "int8"), ValueError, "onnx is compiled to fp32, not to int8"),
        (("vulkan", None), ValueError, "backend must be one of openvino"),
        (("tensorrt", "fp16"), DeviceError, "no CUDA device was found"),
    ],
)
def test_what_cannot_be_compiled_says_why(
    options: tuple[str, str | None], error: type[Exception], message: str, fast: Bundle
) -> None:
    with pytest.raises(error, match=message):
        compile_bundle(fast, *options)


def test_a_model_without_int8_graphs_is_compiled_to_fp32(fast: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    shutil.copytree(fast.folder, folder, ignore=shutil.ignore_patterns("*.int8.*"))
    bundle = read_bundle(folder)
    assert compile_bundle(bundle, "openvino").engine.target.precision == "fp32"
    with pytest.raises(ModelError, match="no int8 graphs"):
        compile_bundle(bundle, "openvino", "int8")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_engines_in_floating_point_are_as_good_as_the_reference(
    precision: str, fast: Bundle, clips: list[Clip]
) -> None:
    try:
        made = compile_bundle(fast, "openvino", precision)
    except DeviceError:
        assert precision != "fp32"
        with pytest.raises(DeviceError, match="does not compute in"):
            open_backend("fast", device="cpu", backend=f"openvino-{precision}")
        return
    verdict = compare(
        open_engine(fast, made.engine), reference_of(fast), clips, precision=precision
    )
    assert abs(verdict.psnr_reference - verdict.psnr_engine) < 0.02
    assert verdict.psnr_reference > verdict.psnr_blurred + 0.5
    limit = {"fp32": 0.001, "fp16": 0.01, "bf16": 0.2}[precision]
    assert 0 < max(each.relative for each in verdict.deviations) < limit
    if precision == "fp32":
        assert verdict.failures == ()


def test_the_int8_engine_restores_as_well_as_the_reference(fast: Bundle, clips: list[Clip]) -> None:
    made = compile_bundle(fast, "openvino", "int8")
    verdict = compare(open_engine(fast, made.engine), reference_of(fast), clips, precision="int8")
    assert abs(verdict.psnr_reference - verdict.psnr_engine) < 0.15
    assert {each.graph for each in verdict.deviations} == set(fast.parts)


def test_an_engine_of_another_network_is_found_out(fast: Bundle, clips: list[Clip]) -> None:
    made = compile_bundle(fast, "onnx").engine
    parts = dict(made.parts)
    # The strongest filter takes the mildest one's place: same shapes, other pictures.
    parts["filter_1"] = parts["filter_3"]
    verdict = compare(
        open_engine(fast, replace(made, parts=parts)), OnnxBackend(fast), clips, precision="fp32"
    )
    wrong = [each.graph for each in verdict.deviations if each.relative > 0.05]
    assert set(wrong) == {"filter_1"}


def test_a_bar_that_is_missed_is_told(fast: Bundle, clips: list[Clip]) -> None:
    class Idle(OnnxBackend):
        """Takes every block for clear."""

        def embed(self, luma: Any, around: Any, motion: Any) -> Any:
            context, latents = super().embed(luma, around, motion)
            return context, np.broadcast_to(fast.clusters.centroids[0], latents.shape).copy()

    verdict = compare(Idle(fast), OnnxBackend(fast), clips, precision="fp16")
    assert verdict.agreement < 0.6
    assert [text.split(" ")[1] for text in verdict.failures] == ["dB", "of"]
    assert "missed: " in verdict.in_words()


def test_verification_takes_photographs(
    fast: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SourceError, match="no pictures"):
        pictures_in(tmp_path)
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "notes.txt").write_text("not a picture")
    cv2.imwrite(str(folder / "upside-down.png"), picture_of_demo()[::-1, :, ::-1])
    given = rendered_clips(pictures_in(folder), blurs=(4.0,), frames=2)
    monkeypatch.setattr("vdeblur_engines.verify.rendered_clips", lambda _: given)
    verdict = verify_engines(fast, [compile_bundle(fast, "onnx").engine], folder)
    assert verdict.frames == 2


def test_both_stages_of_a_model_are_compiled_and_verified(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    short = list(rendered_clips(blurs=(5.0,), frames=3))
    monkeypatch.setattr("vdeblur_engines.verify.rendered_clips", lambda _: short)
    words = ["compile", "--model", "best", "--backend", "openvino", "--precision", "fp32"]
    assert main([*words, "--verify", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [told["target"]["model"], told["first"]["target"]["model"]] == ["best", "fast"]
    graphs = [f"{stage}filter_{k}" for stage in ("", "second_") for k in (1, 2, 3)]
    assert {each["graph"] for each in told["verdict"]["deviations"]} == {"encoder", *graphs}
    assert told["verdict"]["psnr_engine"] > told["verdict"]["psnr_blurred"] + 0.5
    opened = stages_of(open_backend("best", device="cpu", backend="openvino-fp32"))
    assert [stage.name for stage in opened] == ["openvino fp32 engine"] * 2


def test_typed_graphs_compute_in_half_precision(fast: Bundle) -> None:
    import onnx
    import onnxruntime

    for part in fast.parts:
        assert typed_graph(fast.graph(part), "fp32") == fast.graph(part).read_bytes()
        graph = typed_graph(fast.graph(part), "fp16")
        model = onnx.load_from_string(graph)
        onnx.checker.check_model(model, full_check=True)
        inferred = onnx.shape_inference.infer_shapes(model).graph
        kinds = {
            each.name: each.type.tensor_type.elem_type
            for each in (*inferred.value_info, *inferred.input, *inferred.output)
        }
        computed = [node for node in model.graph.node if node.op_type in ("Conv", "MatMul", "Add")]
        assert {kinds[node.output[0]] for node in computed} == {onnx.TensorProto.FLOAT16}
        sessions = [
            onnxruntime.InferenceSession(each, providers=["CPUExecutionProvider"])
            for each in (fast.graph(part).read_bytes(), graph)
        ]
        given = {
            "luma": np.full((1, 1, 128, 128), 90, np.uint8),
            "around": np.full((1, 2, 64, 64), 80, np.uint8),
            "motion": np.ones((1, MOTION, 16, 16), np.float32),
        }
        if part != "encoder":
            given = dict(zip(("luma", "chroma", "context"), blocks(2, fast), strict=True))
        for exact, rounded in zip(*(each.run(None, given) for each in sessions), strict=True):
            assert rounded.dtype == np.float32
            assert np.abs(exact - rounded).max() < 0.03 * np.abs(exact).max()


def test_the_command_makes_an_engine_that_a_run_then_uses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compile", "--backend", "onnx"]) == 0
    out = capsys.readouterr().out
    assert "vdeblur --backend onnxruntime uses it" in out
    assert main(["compile", "--backend", "onnx"]) == 0
    assert "there already" in capsys.readouterr().out
    clip, fixed = tmp_path / "clip.mp4", tmp_path / "fixed.mp4"
    assert main(["demo", str(clip), "--seconds", "0.2", "--size", "192x128", "--blur", "2"]) == 0
    command = [str(clip), "-o", str(fixed), "--backend", "onnxruntime", "--json"]
    capsys.readouterr()
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["backend"] == "onnxruntime fp32 engine"
    (folder,) = engines_folder().iterdir()
    _cut(folder)
    assert main([*command, "-y"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["backend"] == "onnxruntime fp32"
    assert "is damaged" in captured.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--backend", "onnx", "--precision", "int8"], "onnx is compiled to fp32"),
        (["--backend", "onnx", "--max-batch", "4"], "takes any number of blocks"),
        (["--photos", "."], "--photos is for --verify"),
    ],
)
def test_wrong_options_are_wrong_usage(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compile", *words]) == 2
    assert message in capsys.readouterr().err


def test_the_command_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", "--backend", "onnx", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["target"]["backend"] == "onnx"
    assert Path(told["folder"]).is_dir()
    assert main(["doctor"]) == 0
    assert f"{Path(told['folder']).name}: for this processor" in capsys.readouterr().out


def test_the_network_s_share_is_measured_for_each_backend(fast: Bundle) -> None:
    backends = [OnnxBackend(fast), open_backend("fast", device="cpu", backend="openvino")]
    shares = measure(backends, width=200, height=130, blurred=0.5, rounds=2)
    assert [share.backend for share in shares] == ["onnxruntime fp32", "openvino int8"]
    for share in shares:
        assert min(share.encoder, share.filters, share.cpu) > 0
        assert share.both >= max(share.encoder, share.filters)


@pytest.mark.parametrize(
    ("given", "device", "backend", "gpu", "chosen"),
    [
        ("auto", "auto", "auto", False, "fast"),
        ("auto", "auto", "auto", True, "best"),
        ("auto", "cpu", "auto", True, "fast"),
        ("auto", "auto", "openvino", True, "fast"),
        ("auto", "auto", "tensorrt-rtx", False, "best"),
        ("fast", "auto", "auto", True, "fast"),
        ("./mine", "cuda", "auto", True, "./mine"),
    ],
)
def test_a_gpu_gets_the_best_model_unless_another_is_named(
    given: str, device: str, backend: str, gpu: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vdeblur.backend.has_cuda", lambda: gpu)
    assert chosen_model(given, device=device, backend=backend) == chosen
