"""What the command line says of a run while it lasts and when it is over."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from .live import LiveProgress, LiveSummary
    from .pipeline import Progress, Summary


def live_line(progress: "LiveProgress") -> None:
    """One line on the terminal that is written anew."""
    if progress.frames % 10 == 0:
        click.echo(
            f"\r{progress.frames} frames, {progress.dropped} dropped, "
            f"latency {1000 * progress.latency:.0f} ms, strength {progress.strength:.0%}  \r",
            err=True,
            nl=False,
        )


def live_sentence(summary: "LiveSummary") -> str:
    """What came of a live run."""
    parts = [
        f"{summary.sink or summary.source}: {summary.frames} frames in {summary.seconds:.1f} s",
        f"{summary.dropped} dropped",
        f"latency {1000 * summary.latency:.0f} ms, at most {1000 * summary.latency_max:.0f} ms",
    ]
    if summary.backend:
        parts += [
            share(summary.filtered),
            f"{100 * summary.only_stabilized:.0f} % of frames only stabilised",
        ]
    return ", ".join(parts)


def sentence(summary: "Summary") -> str:
    """What came of a run."""
    parts = [
        f"{summary.sink}: {summary.frames} frames in {summary.seconds:.1f} s "
        f"({summary.fps:.1f} frames/s)"
    ]
    if summary.backend:
        parts += [share(summary.filtered), summary.backend]
    return ", ".join(parts)


def share(filtered: float) -> str:
    """Of the blocks, in words."""
    return f"{100 * filtered:.0f} % of blocks filtered"


@contextmanager
def progress_bar(label: str, *, shown: bool) -> "Iterator[Callable[[Progress], None] | None]":
    """A bar on the terminal, and what moves it on; None where none is `shown`."""
    if not shown:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.1f} frames/s"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[filtered]}"),
    )
    console = Console(stderr=True)
    with Bar(*columns, console=console, transient=True, refresh_per_second=4) as bar:
        task = bar.add_task(label, total=None, rate=0.0, filtered="")

        def show(progress: "Progress") -> None:
            bar.update(
                task,
                completed=progress.frames,
                total=max(progress.total, progress.frames) if progress.total else None,
                rate=progress.frames / progress.seconds,
                filtered=share(progress.filtered) if progress.filtered else "",
            )

        yield show
