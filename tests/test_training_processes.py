import os
import subprocess
import sys
import time
from pathlib import Path

STARTS_ANOTHER = """
import multiprocessing, time
from vdeblur_training.data import end_with_parent

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
