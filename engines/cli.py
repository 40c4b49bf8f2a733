"""`vdeblur compile`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vdeblur.errors import VdeblurError

if TYPE_CHECKING:
    from .compile import Compiled
    from .verify import Verdict


@click.command("compile")
@click.option("--model", default="auto", show_default=True, help="A shipped model or its folder.")
@click.option(
    "--backend",
    type=click.Choice(["openvino", "onnx", "tensorrt-rtx", "tensorrt"]),
    help="What shall run the engine.  [default: the fastest that is here]",
)
@click.option(
    "--precision",
    type=click.Choice(["int8", "fp16", "bf16", "fp32"]),
    help="[default: int8 for openvino, fp32 for onnx, fp16 for the others]",
)
@click.option(
    "--max-batch",
    type=click.IntRange(2, 1024),
    help="Blocks that a GPU filters at a time.  [default: 32]",
)
@click.option("--force", is_flag=True, help="Make it again if it is there already.")
@click.option(
    "--verify", is_flag=True, help="Hold the engine against the reference, torch in fp32."
)
@click.option(
    "--photos",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Verify on clips of these photographs instead of the package's own.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as a JSON object.")
def compile_command(
    *,
    model: str,
    backend: str | None,
    precision: str | None,
    max_batch: int | None,
    force: bool,
    verify: bool,
    photos: Path | None,
    as_json: bool,
) -> None:
    """Make an engine of a model for this machine, which vdeblur then uses by itself.

    It starts faster with one. Engines lie in the cache folder and may be deleted at any time.
    """
    from vdeblur.backend import AUTO, chosen_model
    from vdeblur.bundle import read_bundle

    from .compile import compile_bundle

    if photos and not verify:
        raise click.UsageError("--photos is for --verify")
    bundle = read_bundle(chosen_model(model, backend=backend or AUTO))
    try:
        made = compile_bundle(bundle, backend, precision, max_batch=max_batch, force=force)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    verdict = None
    if verify:
        from .verify import verify_engine

        verdict = verify_engine(bundle, made.engine, photos)
    _tell(made, verdict, as_json=as_json)
    if verdict and verdict.failures:
        raise VdeblurError(f"the engine is too far from {verdict.reference}: {verdict.failures[0]}")


def _tell(made: "Compiled", verdict: "Verdict | None", *, as_json: bool) -> None:
    target = made.engine.target
    size = sum(map(len, made.engine.parts.values()))
    if as_json:
        told = {
            "folder": str(made.engine.folder),
            "seconds": made.seconds,
            "bytes": size,
            "removed": [str(folder) for folder in made.removed],
            "target": asdict(target),
            "verdict": verdict and asdict(verdict),
        }
        click.echo(json.dumps(told, indent=2))
        return
    how = f"made in {made.seconds:.1f} s" if made.seconds else "there already"
    click.echo(f"{made.engine.folder}: {how}, {size / 1e6:.1f} MB, for {target.device}")
    for folder in made.removed:
        click.echo(f"removed {folder}, which it replaces")
    click.echo(_use(target.backend, target.precision, target.device))
    if verdict:
        click.echo(verdict.in_words())


def _use(backend: str, precision: str, device: str) -> str:
    """How it comes to be used."""
    from .compile import NO_GPU

    if device == NO_GPU:
        return "no GPU was found: it can be looked at, but it will not run here"
    if backend in ("tensorrt", "tensorrt-rtx") or (backend, precision) == ("openvino", "int8"):
        return "vdeblur uses it by itself from now on"
    names = {("onnx", "fp32"): "onnxruntime"}
    return f"vdeblur --backend {names.get((backend, precision), f'{backend}-{precision}')} uses it"
