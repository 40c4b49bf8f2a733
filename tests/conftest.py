import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from vdeblur.blocks import MOTION

if TYPE_CHECKING:
    from vdeblur.model import MultiFilter
    from vdeblur_training.patches import Patch


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache folder of the tests' own: engines of the user's would be used otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def _real(program: str, package: str) -> str:
    """The path of a real program; where it must be there (in CI), its absence is a failure."""
    path = shutil.which(program)
    if path is None:
        reason = f"{program} is not installed here (apt-get install {package}): not tested with it"
        if os.environ.get("VDEBLUR_REQUIRE_PROGRAMS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return path


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Path]:
    """A folder that may not be entered; root, whom nothing stops, is somebody else meanwhile."""
    folder, user = tmp_path / "closed", os.geteuid()
    folder.mkdir()
    folder.chmod(0)
    if user == 0:
        os.seteuid(65534)
    try:
        yield folder
    finally:
        os.seteuid(user)
        folder.chmod(0o700)


@pytest.fixture(scope="session")
def ffmpeg() -> str:
    """The path of the real program."""
    return _real("ffmpeg", "ffmpeg")


@pytest.fixture(scope="session")
def compiler() -> str:
    """The path of the real program."""
    return _real("cc", "gcc libc6-dev")


@pytest.fixture
def screen() -> Iterator[str]:
    """The name of an X display that nobody sees."""
    words = [_real("Xvfb", "xvfb"), "-displayfd", "1", "-screen", "0", "400x200x24"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        assert server.stdout is not None
        yield f":{int(server.stdout.readline())}"
        server.terminate()


@pytest.fixture(scope="session")
def tensorrt_rtx() -> Any:
    """The library, which needs no GPU to build engines; where it must be there, it is."""
    try:
        return import_module("tensorrt_rtx")
    except ImportError as error:
        reason = f"tensorrt_rtx is not installed here: no engines are built with it ({error})"
        if os.environ.get("VDEBLUR_REQUIRE_PROGRAMS") == "1" and platform.machine() == "x86_64":
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture
def small_model() -> "tuple[MultiFilter, Patch]":
    """A model with one small filter, to which all blocks go, and a batch of noise."""
    import torch

    from vdeblur.model import FilterConfig, ModelConfig, MultiFilter
    from vdeblur_training.patches import Patch

    torch.manual_seed(2)
    model = MultiFilter(ModelConfig(filters=(FilterConfig(8, 8, 1, 1),)))
    model.centroids.data[0] = 100  # all blocks are near the other one
    noise = np.random.default_rng(2)

    def bytes_of(planes: int, edge: int) -> torch.Tensor:
        return torch.from_numpy(noise.integers(0, 256, (1, planes, edge, edge), np.uint8))

    patch = Patch(
        luma=bytes_of(3, 136),
        chroma=bytes_of(6, 68),
        around=bytes_of(2, 64),
        motion=torch.from_numpy(noise.normal(size=(1, MOTION, 16, 16)).astype(np.float32)),
        sharp_luma=bytes_of(1, 136),
        sharp_chroma=bytes_of(2, 68),
        blur=torch.ones(1, 2, 2),
    )
    return model, patch
