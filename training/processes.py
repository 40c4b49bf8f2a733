"""Processes that work beside a training; what goes wrong in one of them, the training says."""

import multiprocessing
import multiprocessing.queues
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from vdeblur.errors import VdeblurError

Errors = multiprocessing.queues.SimpleQueue[VdeblurError]


class Helper:
    """A process that does `work` with what is `given`, from now on; it ends with this one."""

    def __init__(self, doing: str, work: Callable[..., None], *given: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._doing = doing
        # It starts multiprocessing's tracker, which would unblock what `_deaf` blocks.
        self._errors: Errors = context.SimpleQueue()
        self._process = context.Process(target=_work, args=(self._errors, work, given), daemon=True)
        with _deaf():
            self._process.start()

    def check(self) -> None:
        """Raise the VdeblurError that ended it, or that something else did."""
        if not self._errors.empty():
            raise self._errors.get()
        if self._process.exitcode:
            raise VdeblurError(f"{self._doing} failed: see above")

    def stop(self) -> None:
        """End it now."""
        self._process.terminate()
        self._process.join()


@contextmanager
def _deaf() -> Iterator[None]:
    """What is started here does not hear Ctrl-C, which a terminal sends to all: this one ends it.

    Not even while it imports, before `_work` begins. Windows has no such mask.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(errors: Errors, work: Callable[..., None], given: tuple[Any, ...]) -> None:
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        work(*given)
    except VdeblurError as error:
        errors.put(error)
    except OSError as error:
        errors.put(VdeblurError(str(error)))


def end_with_parent() -> None:
    """End this process, if another one started it, as soon as that has ended, even if killed."""
    if (parent := multiprocessing.parent_process()) is None:
        return

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
