"""A webcam and a virtual camera, as FFmpeg's and pyvirtualcam's own code open them.

The devices are made by a library that is preloaded: see video_devices.c.
"""

import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Video4Linux2 is Linux's")

WIDTH, HEIGHT, FRAMES = 320, 240, 60
SOURCE = Path(__file__).with_name("video_devices.c")


@pytest.fixture(scope="module")
def devices(compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library."""
    library = tmp_path_factory.mktemp("devices") / "video_devices.so"
    flags = ["-std=c99", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
    subprocess.run([compiler, *flags, str(SOURCE), "-o", str(library), "-ldl"], check=True)
    return library


def film(devices: Path, folder: Path, *words: str) -> str:
    """Run vdeblur on the webcam until it is unplugged; return what it said."""
    (folder / "webcam").touch()
    environment = {
        "LD_PRELOAD": str(devices),
        "VDEBLUR_WEBCAM": str(folder / "webcam"),
        "VDEBLUR_WEBCAM_FRAMES": str(FRAMES),
        "VDEBLUR_LOOPBACK": str(folder / "loopback"),
    }
    source = f"camera:{folder / 'webcam'}"
    done = subprocess.run(
        [sys.executable, "-m", "vdeblur", source, "--no-deblur", *words],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def rising(brightness: list[float]) -> bool:
    """Whether frames came in order, each of a brightness of its own, and most of them came."""
    steps = np.diff(np.rint(brightness))
    return len(brightness) > FRAMES / 2 and bool((steps > 0).all())


def test_a_webcam_is_filmed_until_it_is_unplugged(devices: Path, tmp_path: Path) -> None:
    sink = tmp_path / "fixed.mkv"
    said = film(devices, tmp_path, "-o", str(sink), "--codec", "ffv1")
    assert said.count("\n") == 1
    assert "No such device" in said
    with av.open(str(sink)) as fixed:
        frames = list(fixed.decode(video=0))
    assert {(frame.width, frame.height) for frame in frames} == {(WIDTH, HEIGHT)}
    assert rising([float(frame.to_ndarray(format="gray").mean()) for frame in frames])
    times = [frame.time or 0 for frame in frames]
    assert times[-1] - times[0] == pytest.approx((len(times) - 1) / 30, abs=0.5)


def test_another_program_sees_the_webcam_steadied(devices: Path, tmp_path: Path) -> None:
    film(devices, tmp_path, "--virtual-camera")
    shown = np.fromfile(tmp_path / "loopback", np.uint8).reshape(-1, HEIGHT * 3 // 2, WIDTH)
    assert rising([float(picture[:HEIGHT].mean()) for picture in shown])
    assert np.abs(shown[:, HEIGHT:].astype(int) - 128).max() <= 1
