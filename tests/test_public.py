import ast
import os
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest

import vdeblur

SOURCE = Path(vdeblur.__file__).read_text()


def loaded_after(statement: str) -> set[str]:
    """The modules that a fresh Python has loaded after one statement."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("name", vdeblur.__all__)
def test_every_public_name_is_there_and_has_a_docstring(name: str) -> None:
    value = getattr(vdeblur, name)
    assert name == "__version__" or value.__doc__


def test_what_type_checkers_see_is_what_is_there() -> None:
    seen = {
        alias.name: node.module
        for block in ast.parse(SOURCE).body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted([*seen, "__version__"]) == sorted(vdeblur.__all__)
    for name, module in seen.items():
        assert getattr(vdeblur, name) is getattr(import_module(f"vdeblur.{module}"), name)


def test_dir_lists_the_public_names() -> None:
    assert set(vdeblur.__all__) <= set(dir(vdeblur))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = vdeblur.nothing


def test_the_version_is_the_package_s() -> None:
    assert vdeblur.__version__ == version("vdeblur")


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not loaded_after("import vdeblur") & {"numpy", "cv2", "av", "openvino", "rich", "click"}


def test_the_runtime_does_without_torch() -> None:
    assert "torch" not in loaded_after("import vdeblur.pipeline")


def test_openvino_and_nncf_report_their_use_to_nobody(tmp_path: Path) -> None:
    code = "import vdeblur, openvino, nncf, threading; print(threading.active_count())"
    home = os.environ | {"HOME": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", code], env=home, capture_output=True, check=True)
    assert run.stdout.split()[-1] == b"1", "nobody sends anything"
    assert not (tmp_path / "intel").exists(), "no number by which they would know whose use it is"
