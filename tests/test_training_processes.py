import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from vdeblur.cli import main

PHOTO = Path(__file__).parents[1] / "vdeblur/assets/colosseum.jpg"
RECIPE = """
name: endless
held_out: [elsewhere]
clips: {size: 208, frames: 3}
pool: 100
batch: 2
"""

STARTS_ANOTHER = """
import multiprocessing, time
from vdeblur_training.processes import end_with_parent

def wait():
    end_with_parent()
    print(multiprocessing.current_process().pid, flush=True)
    time.sleep(100)

if __name__ == "__main__":
    multiprocessing.get_context("spawn").Process(target=wait).start()
    time.sleep(100)
"""


def runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{process}/stat")
    return not status.exists() or status.read_text().split()[2] != "Z"


def test_helpers_end_with_a_training_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "starts.py"
    script.write_text(STARTS_ANOTHER)
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as training:
        assert training.stdout is not None
        helper = int(training.stdout.readline())
        assert runs(helper)
        training.kill()
    for _ in range(100):
        if not runs(helper):
            return
        time.sleep(0.1)
    raise AssertionError("the helper goes on")


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """Of a training that does not end in a test's time."""
    (tmp_path / "photos").mkdir()
    shutil.copy(PHOTO, tmp_path / "photos")
    (tmp_path / "endless.yaml").write_text(RECIPE)
    photos, run = str(tmp_path / "photos"), str(tmp_path / "run")
    return ["train", str(tmp_path / "endless.yaml"), "--photos", photos, "--out", run]


def one_error(words: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    """What is said, by all processes, behind the warning that nothing is held out."""
    assert main(words) == 1
    warning, error = capfd.readouterr().err.splitlines()
    assert "holds none of the recipe's held-out pictures" in warning
    return error


def test_an_interrupted_training_says_how_to_go_on(words: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vdeblur", *words]
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a job's may be ignored
    ) as training:
        while not list(tmp_path.glob("run/pool/*.npz")):
            assert training.poll() is None
            time.sleep(0.01)
        os.killpg(training.pid, signal.SIGINT)  # as a terminal does: all processes hear it
        _, err = training.communicate(timeout=60)
    assert training.returncode == 130
    _, line = err.splitlines()
    assert line == "vdeblur: interrupted: the same command goes on with what is in --out"


def test_what_ends_a_helper_is_said_in_one_line(
    words: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (photo,) = (tmp_path / "photos").iterdir()
    photo.write_bytes(b"no picture")
    assert one_error(words, capfd) == f"vdeblur: error: cannot read the picture {photo}"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no such disk here")
def test_a_disk_that_is_full_ends_a_training_with_one_line(
    words: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pool = tmp_path / "run" / "pool"
    pool.mkdir(parents=True)
    (pool / "7-00000.part.npz").symlink_to("/dev/full")
    path = pool / "7-00000.npz"
    assert (
        one_error(words, capfd) == f"vdeblur: error: cannot write {path}: No space left on device"
    )


def test_a_run_folder_that_cannot_be_made_is_named(
    words: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "pool").write_bytes(b"")
    assert "cannot make the folder" in one_error(words, capfd)
    (tmp_path / "file").write_bytes(b"")
    words[-1] = str(tmp_path / "file" / "run")
    assert f"cannot make the folder {words[-1]}: Not a directory" in one_error(words, capfd)
