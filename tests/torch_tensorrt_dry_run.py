"""Ask torch-tensorrt, on a machine without a GPU, whether it covers a bundle's operators.

A program of its own, because it replaces what torch says of GPUs. Prints JSON.
"""

import json
import os
import sys
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import torch


def pretend() -> None:
    """Answer what torch-tensorrt asks about the GPU, and hide its own C++ runtime, which needs one.

    Nothing of it decides which operators are covered.
    """
    gpu = SimpleNamespace(name="none", major=8, minor=9, total_memory=1 << 33)
    cuda: Any = torch.cuda
    cuda.get_device_properties = lambda *_: gpu
    cuda.get_device_capability = lambda *_: (gpu.major, gpu.minor)
    cuda.current_device = lambda: 0
    cuda.device_count = lambda: 1
    cuda.mem_get_info = lambda *_: (gpu.total_memory, gpu.total_memory)
    internals: Any = torch._C
    if not hasattr(internals, "_CudaDeviceProperties"):  # torch's build for CPUs
        internals._CudaDeviceProperties = SimpleNamespace
    paths: Any = os.path
    is_file = os.path.isfile
    paths.isfile = lambda path: "libtorchtrt" not in str(path) and is_file(path)


def main(model: str, precisions: list[str]) -> None:
    """Print {precision: {graph: coverage}} for a shipped model."""
    pretend()
    from vdeblur.bundle import read_bundle
    from vdeblur_engines.gpu import dry_run, profile_of

    bundle = read_bundle(model)
    told = {
        precision: {
            part: asdict(coverage)
            for part, coverage in dry_run(bundle, precision, profile_of(bundle, 32)).items()
        }
        for precision in precisions
    }
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
