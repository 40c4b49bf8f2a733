"""`vdeblur compile`."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vdeblur.errors import VdeblurError
from vdeblur.parameters import SETTINGS

if TYPE_CHECKING:
    from .compile import Compiled
    from .verify import Verdict


@click.command("compile", context_settings=SETTINGS)
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
        made = [
            compile_bundle(stage, backend, precision, max_batch=max_batch, force=force)
            for stage in bundle.stages
        ]
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    verdict = None
    if verify:
        from .verify import verify_engines

        verdict = verify_engines(bundle, [each.engine for each in made], photos)
    _tell(made, verdict, as_json=as_json)
    if verdict and verdict.failures:
        raise VdeblurError(f"the engine is too far from {verdict.reference}: {verdict.failures[0]}")


def _tell(made: "Sequence[Compiled]", verdict: "Verdict | None", *, as_json: bool) -> None:
    """Of the engines of all stages; in JSON that of the first is `first` in the second's."""
    target = made[-1].engine.target
    if as_json:
        told = None
        for each in made:
            told = {**_as_json(each), **({} if told is None else {"first": told})}
        click.echo(json.dumps({**(told or {}), "verdict": verdict and asdict(verdict)}, indent=2))
        return
    for each in made:
        how = f"made in {each.seconds:.1f} s" if each.seconds else "there already"
        size = sum(map(len, each.engine.parts.values()))
        click.echo(f"{each.engine.folder}: {how}, {size / 1e6:.1f} MB, for {target.device}")
        for folder in each.removed:
            click.echo(f"removed {folder}, which it replaces")
    click.echo(_use(target.backend, target.precision, target.device))
    if verdict:
        click.echo(verdict.in_words())


def _as_json(made: "Compiled") -> dict[str, Any]:
    return {
        "folder": str(made.engine.folder),
        "seconds": made.seconds,
        "bytes": sum(map(len, made.engine.parts.values())),
        "removed": [str(folder) for folder in made.removed],
        "target": asdict(made.engine.target),
    }


def _use(backend: str, precision: str, device: str) -> str:
    """How it comes to be used."""
    from .compile import NO_GPU

    if device == NO_GPU:
        return "no GPU was found: it can be looked at, but it will not run here"
    if backend in ("tensorrt", "tensorrt-rtx") or (backend, precision) == ("openvino", "int8"):
        return "vdeblur uses it by itself from now on"
    names = {("onnx", "fp32"): "onnxruntime"}
    return f"vdeblur --backend {names.get((backend, precision), f'{backend}-{precision}')} uses it"
