import os
import shutil

import pytest


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
