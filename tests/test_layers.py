"""A module imports only from floors below its own: the code has one direction to be read in."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "vdeblur"

FLOORS = (
    "sway refine similarity heap priority errors",
    "cpu frame prefetch behind pipes timing options blocks clusters path render deinterlace",
    "turn lens view hardware strips cells laying anew",
    "direct mesh calm",
    "pixels model align peers motion warp rolling motionfile overlay bundle demo scene",
    "engine tensorrt runtimes parameters found",
    "backwards change",
    "filtering",
    "info backend fill scenes plot sources",
    "section second stabilize device",
    "reader",
    "encoder sinks doctor restore",
    "writer processor",
    "video",
    "pipeline displays",
    "live overlap",
    "bench progress",
    "commands",
    "cli",
    "__main__",
    "__init__",
)
"""From the ground up."""

FLOOR = {module: floor for floor, modules in enumerate(FLOORS) for module in modules.split()}


def imported(path: Path) -> Iterator[str]:
    """The modules of the package that a file imports, lazily or not."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            # `from . import __version__` takes a name that is there before any module.
            yield from (name for name in names if not name.startswith("__"))


def test_every_module_has_a_floor() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == set(FLOOR)


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.stem)
def test_modules_import_only_from_below(path: Path) -> None:
    above = {name for name in imported(path) if FLOOR[name] >= FLOOR[path.stem]}
    assert not above, f"{path.stem} must not import {', '.join(sorted(above))}"


def test_the_runtime_does_not_know_the_other_packages() -> None:
    for path in PACKAGE.glob("*.py"):
        for name in ("vdeblur_training", "vdeblur_engines", "vdeblur_plugins"):
            assert f"import {name}" not in path.read_text()
            assert f"from {name}" not in path.read_text()
