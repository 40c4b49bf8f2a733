"""The processor's name, and which of its instructions make 8-bit networks fast."""

import os
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FLAGS = (
    "avx2",
    "avx512f",
    "avx_vnni",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "i8mm",
    "bf16",
)
"""As Linux calls them."""
EIGHT_BIT = {"avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm"}
"""Those that multiply and add several 8-bit numbers at once."""
BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}
"""Those that do so with numbers of 16 bits that have the exponent of 32."""


@dataclass(frozen=True, slots=True)
class Cpu:
    """As far as the system tells."""

    name: str
    flags: tuple[str, ...]
    """Those of `FLAGS` that it has; none where the system does not say."""
    cores: int
    """That this process may use."""

    @property
    def eight_bit(self) -> bool:
        """Whether it has instructions for 8-bit networks (VNNI and its like)."""
        return bool(EIGHT_BIT.intersection(self.flags))

    @property
    def bfloat16(self) -> bool:
        """Whether it has instructions for networks in bfloat16."""
        return bool(BFLOAT16.intersection(self.flags))


@cache
def this_cpu() -> Cpu:
    """Look it up."""
    name, flags = platform.processor() or platform.machine(), set[str]()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
            elif key.strip() in ("flags", "Features"):
                flags = set(value.split())
    usable = getattr(os, "sched_getaffinity", None)
    cores = len(usable(0)) if usable else os.cpu_count() or 1
    return Cpu(name, tuple(flag for flag in FLAGS if flag in flags), cores)
