"""Time whole commands, and with them the FFmpeg filters that do a part of what vdeblur does."""

import resource
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

from .errors import VdeblurError

ENCODED = ("-c:v", "libx264", "-preset", "veryfast", "-crf", "18", "-c:a", "copy")
"""As vdeblur encodes where it is not told otherwise."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a command takes, its start included; medians."""

    seconds: float
    """By the clock."""
    cpu_seconds: float
    """Of all cores, in user and system mode."""


def timed(command: str) -> Cost:
    """Run a shell's command with all its children."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), perf_counter()
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    seconds, after = perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise VdeblurError(f"cannot measure: {reason(done)}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(seconds, cpu)


def reason(done: subprocess.CompletedProcess[str]) -> str:
    """What a program said last, on one line, of why it failed."""
    *_, last = ["", *done.stderr.strip().splitlines()]
    said = last.removeprefix("vdeblur: ").removeprefix("error: ").removeprefix("Error: ")
    return said or f"exit status {done.returncode}"


def compared(commands: Mapping[str, str], *, repeats: int) -> dict[str, Cost]:
    """Run all commands in turn, `repeats` times."""
    rounds = [{name: timed(command) for name, command in commands.items()} for _ in range(repeats)]
    return {
        name: Cost(
            median(each[name].seconds for each in rounds),
            median(each[name].cpu_seconds for each in rounds),
        )
        for name in commands
    }


def ffmpeg_peers(source: Path, folder: Path) -> dict[str, str]:
    """Commands that write into `folder`, of those filters that the ffmpeg here has.

    Empty if there is no ffmpeg.
    """
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        return {}
    listed = subprocess.run(
        [ffmpeg, "-hide_banner", "-filters"], capture_output=True, text=True, check=False
    )
    known = {line.split()[1] for line in listed.stdout.splitlines() if len(line.split()) > 2}

    def filtered(words: str) -> str:
        sink = folder / "peer.mp4"
        chain = ["-vf", words] if words else []
        return shlex.join([*quiet, "-i", str(source), *chain, *ENCODED, str(sink)])

    quiet = [ffmpeg, "-v", "error", "-nostdin", "-y"]
    commands = {"decode and encode only (ffmpeg)": filtered("")}
    if {"vidstabdetect", "vidstabtransform"} <= known:
        path = folder / "transforms.trf"
        detect = [*quiet, "-i", str(source), "-vf", f"vidstabdetect=result={path}"]
        commands["vid.stab, two passes"] = " && ".join(
            [shlex.join([*detect, "-f", "null", "-"]), filtered(f"vidstabtransform=input={path}")]
        )
    if "deshake" in known:
        commands["deshake"] = filtered("deshake")
    if {"nlmeans", "unsharp"} <= known:
        commands["nlmeans and unsharp"] = filtered("nlmeans,unsharp")
    return commands
