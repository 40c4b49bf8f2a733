"""stdin and stdout for FFmpeg: whoever waits for the other program can be called back."""

import os
import select
import stat
import sys
from contextlib import suppress

STDIN, STDOUT, STDERR = 0, 1, 2


class PipeEnd:
    """One end of a pipe; `release` ends all waiting in it, now and later, from any thread."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.count = 0
        """Bytes that went through."""
        self.interruption: BaseException | None = None
        """Ctrl-C in the middle of a wait: it cannot pass through FFmpeg, which called us."""
        self._woken, self._wake = os.pipe()
        self._poll = select.poll()
        self._poll.register(self._woken, select.POLLIN)

    def release(self) -> None:
        """Let nobody wait any more: reading finds the end, writing fails."""
        with suppress(OSError):
            os.write(self._wake, b".")

    def _ready(self) -> bool:
        """Wait for the other side; False if nobody shall wait any more."""
        try:
            return self._woken not in {fd for fd, _ in self._poll.poll()}
        except BaseException as error:
            self.interruption = error
            self.release()
            return False

    def close(self) -> None:
        """Free what the wake-up call needs; the pipe itself belongs to the process."""
        for fd in (self._woken, self._wake):
            with suppress(OSError):
                os.close(fd)
        self._woken = self._wake = -1


class PipeReader(PipeEnd):
    """What comes in through `fd`; a file that was redirected to it can be sought in."""

    def __init__(self, fd: int = STDIN) -> None:
        super().__init__(fd)
        self._is_file = stat.S_ISREG(os.fstat(fd).st_mode)
        self._poll.register(fd, select.POLLIN)

    def read(self, size: int) -> bytes:
        """Return what is there, at most `size` bytes; nothing at the end."""
        data = os.read(self.fd, size) if self._ready() else b""
        self.count += len(data)
        return data

    def seekable(self) -> bool:
        """Tell whether stdin is a file."""
        return self._is_file

    def tell(self) -> int:
        """Say where in the file the next `read` begins."""
        return os.lseek(self.fd, 0, os.SEEK_CUR)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to another place in the file."""
        return os.lseek(self.fd, offset, whence)


class PipeWriter(PipeEnd):
    """What goes out through stdout. Until `close`, all else that is printed goes to stderr."""

    def __init__(self) -> None:
        if sys.stdout is not None:
            sys.stdout.flush()
        super().__init__(os.dup(STDOUT))
        self._poll.register(self.fd, select.POLLOUT)
        # Even a pipe that has some room makes a large write wait until all of it has gone.
        self._was_blocking = os.get_blocking(self.fd)
        if not stat.S_ISREG(os.fstat(self.fd).st_mode):
            os.set_blocking(self.fd, False)
        with suppress(OSError):  # without a stderr, stray prints still go to stdout
            os.dup2(STDERR, STDOUT)

    def write(self, data: bytes) -> int:
        """Write all of `data`; raise BrokenPipeError when there is nobody to read it."""
        rest = memoryview(data)
        while rest:
            if not self._ready():
                raise BrokenPipeError("stopped")
            with suppress(BlockingIOError):
                rest = rest[os.write(self.fd, rest) :]
        self.count += len(data)
        return len(data)

    def close(self) -> None:
        """Give stdout back as it was; a second time does nothing."""
        if self.fd < 0:
            return
        with suppress(OSError):
            os.set_blocking(self.fd, self._was_blocking)
        with suppress(OSError):
            if sys.stdout is not None:
                sys.stdout.flush()
            os.dup2(self.fd, STDOUT)
        os.close(self.fd)
        self.fd = -1
        super().close()
