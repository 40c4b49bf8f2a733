"""Compiled engines: a model bundle made ready for one machine, kept in the cache folder.

    ~/.cache/vdeblur/engines/fast-openvino-int8-9f86d081884c7d65/
        manifest.json      what it was made from and for, and the sha256 of each file beside it
        encoder.engine     bytes as the library that runs them wrote them
        filter_1.engine ...

`vdeblur compile` (the package `vdeblur_engines`) makes them and `vdeblur.backend` runs them. An
engine is complete or not there at all: it is written beside its place and then renamed, so that
it does not matter how many programs compile at the same time.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from . import __version__
from .bundle import Bundle
from .cpu import this_cpu
from .errors import EngineError, SinkError

FORMAT = 2
MANIFEST = "manifest.json"
LIBRARIES = {
    "openvino": ("openvino",),
    "onnx": ("onnxruntime",),
    "tensorrt": ("tensorrt", "torch-tensorrt"),
    "tensorrt-rtx": ("tensorrt-rtx",),
}
"""What makes and runs the engines of each backend."""

Profile = dict[str, dict[str, list[list[int]]]]
"""Of each graph and each of its inputs the smallest, the most usual and the largest shape."""


@dataclass(frozen=True, slots=True)
class Target:
    """What an engine is made from and for: it is right only where all of this is the same."""

    model: str
    backend: str
    """'openvino', 'onnx', 'tensorrt' or 'tensorrt-rtx'."""
    precision: str
    """'fp32', 'fp16', 'bf16' or 'int8'."""
    graphs: dict[str, str]
    """sha256 of each graph with its weights."""
    device: str
    """Name and capability."""
    versions: dict[str, str]
    """Of the libraries that made it and will run it."""
    profile: Profile
    """Empty where any shape will do."""
    format: int = FORMAT

    @property
    def key(self) -> str:
        """sha256 of it all."""
        return _sha256(json.dumps(asdict(self), sort_keys=True).encode())

    @property
    def folder(self) -> Path:
        """Where the engine is kept."""
        return engines_folder() / f"{self.stem}{self.key[:16]}"

    @property
    def stem(self) -> str:
        """How the names begin of all folders with engines of this model, backend and precision."""
        return f"{re.sub('[^A-Za-z0-9_.]+', '_', self.model)}-{self.backend}-{self.precision}-"

    @property
    def max_batch(self) -> int | None:
        """How many blocks a filter takes at most; None if any number."""
        shapes = self.profile.get("filter_1")
        return shapes["luma"][-1][0] if shapes else None

    def difference(self, other: "Target") -> str | None:
        """Why an engine for `other` is wrong for this; None if it is right, whatever its profile.

        Where several things differ, the first one that its owner can understand.
        """
        if other.format != self.format:
            return "it was made by another version of vdeblur"
        if other.graphs != self.graphs:
            return "it was made from another version of the model"
        if other.device != self.device:
            return f"it was made for {other.device}, and here is {self.device}"
        for name in self.versions.keys() | other.versions.keys():
            if (then := other.versions.get(name)) != (now := self.versions.get(name)):
                return f"it was made with {name} {then}, and here is {now}"
        return None


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine on disk whose files are as they were written."""

    folder: Path
    target: Target
    parts: dict[str, bytes]
    """The bytes of each graph."""


def engines_folder() -> Path:
    """Where engines are kept, by the XDG base directory specification."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The specification tells to ignore a path that is not absolute.
    cache = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"
    return cache / "vdeblur" / "engines"


def target_of(
    bundle: Bundle, backend: str, precision: str, *, device: str, profile: Profile | None = None
) -> Target:
    """What an engine of this bundle would be made for with the libraries that are here."""
    kind = "int8.xml" if precision == "int8" else "onnx"
    return Target(
        model=bundle.name,
        backend=backend,
        precision=precision,
        graphs=_weight_hashes(bundle) if backend == "tensorrt" else _graph_hashes(bundle, kind),
        device=device,
        versions={"vdeblur": __version__, **{name: _version(name) for name in LIBRARIES[backend]}},
        profile=profile or {},
    )


def cpu_device() -> str:
    """This processor with its instructions, as engines record it."""
    cpu = this_cpu()
    return f"{cpu.name} ({' '.join(cpu.flags)})"


def _graph_hashes(bundle: Bundle, kind: str) -> dict[str, str]:
    """sha256 of each graph with its weights, which lie beside an int8 one."""
    hashes = {}
    for part in compiled_parts(bundle, kind):
        path = bundle.graph(part, kind)
        beside = path.with_suffix(".bin").read_bytes() if kind.endswith("xml") else b""
        hashes[part] = _sha256(path.read_bytes() + beside)
    return hashes


def compiled_parts(bundle: Bundle, kind: str) -> tuple[str, ...]:
    """The graphs that an engine of this kind of them holds: an int8 encoder is compiled when the
    pictures' size is known (see `vdeblur.cells`).
    """
    return tuple(part for part in bundle.parts if (part, kind) != ("encoder", "int8.xml"))


def _weight_hashes(bundle: Bundle) -> dict[str, str]:
    """sha256 of the weights and dimensions that torch makes its graphs of."""
    dimensions = json.dumps(bundle.card.get("model"), sort_keys=True).encode()
    weights = (bundle.folder / "weights.safetensors").read_bytes()
    return dict.fromkeys(bundle.parts, _sha256(weights + dimensions))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def find_engine(target: Target) -> Engine | None:
    """The newest engine that is right for `target`, whatever its profile; None if there is none.

    Raises EngineError, which says why, if those that are there are all wrong or damaged.
    """
    reason = None
    for folder in _newest_first(target):
        try:
            found = read_engine(folder)
        except EngineError as error:
            reason = reason or str(error)
            continue
        difference = target.difference(found.target)
        if difference is None:
            return found
        reason = reason or f"the engine in {folder} is not used: {difference}"
    if reason:
        raise EngineError(f"{reason}; 'vdeblur compile' makes a new one")
    return None


def read_engine(folder: Path) -> Engine:
    """Read an engine, every byte of it checked; EngineError if something is missing or changed."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        target = Target(**{field.name: manifest["target"][field.name] for field in fields(Target)})
        parts = {part: (folder / f"{part}.engine").read_bytes() for part in manifest["files"]}
        damaged = [part for part, data in parts.items() if _sha256(data) != manifest["files"][part]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineError(f"the engine in {folder} is damaged ({error})") from error
    if damaged or parts.keys() != target.graphs.keys():
        raise EngineError(f"the engine in {folder} is damaged ({', '.join(damaged) or 'files'})")
    return Engine(folder, target, parts)


def save_engine(target: Target, parts: Mapping[str, bytes]) -> Engine:
    """Write an engine to its place, completely or not at all; SinkError if that fails.

    If another program was faster, its engine is kept: it was made for the same `target`.
    """
    manifest = {
        "files": {part: _sha256(data) for part, data in parts.items()},
        "target": asdict(target),
    }
    try:
        engines_folder().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=".partial-", dir=engines_folder(), ignore_cleanup_errors=True
        ) as name:
            made = Path(name) / "made"
            made.mkdir()
            for part, data in parts.items():
                (made / f"{part}.engine").write_bytes(data)
            (made / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
            with _locked(engines_folder()):
                _put(made, target.folder, aside=Path(name) / "damaged")
                return read_engine(target.folder)
    except OSError as error:
        raise SinkError(f"cannot write an engine to {engines_folder()}: {error}") from error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One program at a time: another must not take for damaged what is being put there."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _put(made: Path, place: Path, *, aside: Path) -> None:
    """Move a folder to its place; what is damaged there is moved aside first."""
    try:
        read_engine(place)
        return
    except EngineError:
        pass
    with suppress(FileNotFoundError):
        place.rename(aside)
    try:
        made.rename(place)
    except OSError:
        read_engine(place)  # another program's, if it is complete


def remove_stale(target: Target) -> list[Path]:
    """Remove damaged engines and those of other versions that `target` replaces on this device.

    Those of other devices stay: a home folder may be shared by several machines.
    """
    removed = []
    for folder in _newest_first(target):
        try:
            found = read_engine(folder).target
        except EngineError:
            found = None
        if found is None or (found.device == target.device and target.difference(found)):
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder)
    return removed


def known_engines() -> Iterator[tuple[Path, Target | None]]:
    """All engines in the cache folder, by name; None for a damaged one."""
    for folder in sorted(_folders("[!.]*")):
        try:
            yield folder, read_engine(folder).target
        except EngineError:
            yield folder, None


def _newest_first(target: Target) -> list[Path]:
    """The folders that may hold an engine of this model, backend and precision."""

    def written(folder: Path) -> float:
        try:
            return folder.stat().st_mtime
        except FileNotFoundError:  # removed a moment ago
            return 0.0

    pattern = re.compile(re.escape(target.stem) + "[0-9a-f]{16}")
    folders = _folders(f"{target.stem}*")
    return sorted((each for each in folders if pattern.fullmatch(each.name)), key=written)[::-1]


def _folders(pattern: str) -> list[Path]:
    """Those in the cache; none where it may not be entered."""
    try:
        return list(engines_folder().glob(pattern))
    except PermissionError:
        return []


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
