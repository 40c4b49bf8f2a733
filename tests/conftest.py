import os
import shutil
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache folder of the tests' own: engines of the user's would be used otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def ffmpeg() -> str:
    """The path of the real program; where it must be there (in CI), its absence is a failure."""
    path = shutil.which("ffmpeg")
    if path is None:
        reason = "ffmpeg is not installed here: not tested with the real program"
        if os.environ.get("VDEBLUR_REQUIRE_PROGRAMS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return path
