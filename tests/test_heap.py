import ctypes
import subprocess
import sys

import pytest

glibc = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "malloc_stats"),
    reason="only glibc gives threads their own heaps",
)

PROGRAM = """
import ctypes, threading
from vdeblur.heap import share_heaps
{share}
libc = ctypes.CDLL(None)
together = threading.Barrier(6)

def work():
    together.wait()
    libc.malloc(1000)
    together.wait()

threads = [threading.Thread(target=work) for _ in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc.malloc_stats()
"""


def heaps(share: str) -> int:
    program = PROGRAM.format(share=share)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    return done.stderr.count(b"Arena ")


@glibc
def test_threads_share_heaps_where_they_are_told_to() -> None:
    assert heaps("") > 2
    assert heaps("share_heaps()") <= 2
