"""Turn a checkpoint into a model bundle: ONNX graphs, int8 graphs, weights, config."""

import copy
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from vdeblur.blocks import BLOCK, CONTEXT_STRIDE, MOTION, TILE
from vdeblur.bundle import read_bundle, shipped, write_config
from vdeblur.clusters import Clusters
from vdeblur.model import Enter, Folded, Limits, MultiFilter, Strided, multiply_adds, plain
from vdeblur.runtimes import OpenVinoBackend

from .calibrate import calibrated
from .data import Clip
from .quantise import calibration_inputs, quantise, save_int8
from .ranges import encoder_loss, filter_loss, fit_ranges, limits_of

logger = logging.getLogger(__name__)

FilterLimits = tuple[Limits | None, Limits | None]
"""`FilterConfig.coarse_limits` and `context_limits`."""

OPSET = 17
BIAS_CLIPS = 120
"""Clips from which the clusters' biases are found."""
ENCODER_FRAMES = 80
"""By which its ranges are fitted."""


def export_bundle(
    model: MultiFilter,
    folder: Path,
    name: str,
    *,
    calibration: Sequence[Clip],
    card: dict[str, Any],
    first: str | None = None,
    readier: float = 0.0,
    min_change: float | None = None,
    range_passes: int = 2,
    encoder_of: Path | None = None,
) -> None:
    """Write the bundle; `calibration` clips decide the ranges of the int8 graphs and
    how sure the model must be before it filters a block; it need be less sure by `readier`.

    A second stage shares the encoder and the clusters of the bundle `first`, and filters what that
    one changed by `min_change`; of a single stage that is what is shown (see `vdeblur.change`). A
    model whose filters alone have learnt keeps the encoder's graphs and the clusters of the bundle
    in the folder `encoder_of`.
    """
    from safetensors.torch import load_file, save_file

    folder.mkdir(parents=True, exist_ok=True)
    unlimited: FilterLimits = (None, None)  # those that it began with, if any, are found anew
    model = limited(_rounded(model), [unlimited] * len(model.filters))
    parts = [part for part, _, _ in _parts(model) if encoder_of is None or part != "encoder"]
    model = limited(model, _write_int8(model, folder, parts, calibration, range_passes))
    for part, module, inputs in _parts(model):
        if part in parts:
            export_onnx(module, inputs, folder / f"{part}.onnx")
            halve_weights(folder / f"{part}.onnx")
    if encoder_of is not None:
        for graph in encoder_of.glob("encoder.*"):
            shutil.copy(graph, folder / graph.name)
    state = {
        key: (value if _in_full(key) else value.half()).contiguous()
        for key, value in model.state_dict().items()
        if first is None or key.startswith("filters.")
    }
    if encoder_of is not None:
        known = load_file(encoder_of / "weights.safetensors")
        state |= {key: value for key, value in known.items() if not key.startswith("filters.")}
    save_file(state, folder / "weights.safetensors")
    (folder / "weights.safetensors").chmod(0o644)  # it is written for its owner alone
    encoder_cost, filter_costs = multiply_adds(model.config)
    write = partial(
        write_config,
        folder,
        name,
        encoder_cost=0.0 if first is not None else encoder_cost,
        filter_costs=filter_costs,
        context_channels=model.config.context_channels,
        colour_frames=model.config.colour_frames,
        both_ways=model.config.both_ways,
        bidirectional=model.config.bidirectional,
        first=first and _beside(first, folder),
        min_change=min_change,
        card={"model": asdict(model.config), **card},
    )
    if first is not None:
        write(_readier(read_bundle(first).clusters, readier))
        return
    if encoder_of is not None:
        write(read_bundle(encoder_of).clusters)
        return
    write(Clusters(model.centroids.detach().numpy(), model.config.stiffness))
    # The biases belong to the latents that the runtime will see, quantised ones.
    backend = OpenVinoBackend(read_bundle(folder))
    write(_readier(calibrated(model, backend, calibration[:BIAS_CLIPS]), readier))


def _readier(clusters: Clusters, less: float) -> Clusters:
    return replace(clusters, biases=np.maximum(0, clusters.biases - np.float32(less)))


def _write_int8(
    model: MultiFilter, folder: Path, parts: Sequence[str], clips: Sequence[Clip], passes: int
) -> list[FilterLimits]:
    """-> the `limits_of` each filter's graph."""
    frames, samples = calibration_inputs(model, clips)
    limits = list[FilterLimits]()
    for part, module, inputs in _parts(model, Strided):
        if part not in parts:
            continue
        path = folder / f"{part}.strided.onnx"
        export_onnx(module, inputs, path)
        if part == "encoder":
            seen, loss = frames, encoder_loss(model, frames[:ENCODER_FRAMES])
        else:
            seen, loss = [each.inputs for each in samples[part]], filter_loss(samples[part])
        graph = quantise(path, seen)
        before, after = fit_ranges(graph, loss, passes)
        logger.info("%s: ranges fitted, loss %.4f -> %.4f", part, before, after)
        save_int8(graph, folder / f"{part}.int8.xml")
        path.unlink()
        if part != "encoder":
            limits.append(limits_of(graph))
    return limits


def limited(model: MultiFilter, limits: Sequence[FilterLimits]) -> MultiFilter:
    """A copy whose filters cut off in floating point, too, what their int8 graphs do.

    So they have learnt, rounded. Without it a model gained 0.25 dB less on single clips.
    """
    filters = tuple(
        replace(each, coarse_limits=coarse, context_limits=context)
        for each, (coarse, context) in zip(model.config.filters, limits, strict=True)
    )
    copied = MultiFilter(replace(model.config, filters=filters))
    copied.load_state_dict(model.state_dict())
    return copied.eval()


def _beside(first: str, folder: Path) -> str:
    """How a bundle names the one that comes first: a shipped one is named as it is."""
    if first in shipped():
        return first
    return os.path.relpath(Path(first).resolve(), folder.resolve().parent)


Part = tuple[str, nn.Module, dict[str, torch.Tensor]]
"""A graph's name, module and an example of its inputs."""


def _parts(model: MultiFilter, way: Callable[[Enter], nn.Module] = Folded) -> list[Part]:
    """All graphs of the bundle, in floating point."""
    filter_inputs = {
        "luma": torch.zeros(2, model.config.luma_planes, TILE, TILE, dtype=torch.uint8),
        "chroma": torch.zeros(
            2, model.config.chroma_planes, TILE // 2, TILE // 2, dtype=torch.uint8
        ),
        "context": torch.zeros(
            2, model.config.context_channels, TILE // CONTEXT_STRIDE, TILE // CONTEXT_STRIDE
        ),
    }
    cells = (2 * BLOCK // CONTEXT_STRIDE, 3 * BLOCK // CONTEXT_STRIDE)
    encoder_inputs = {
        "luma": torch.zeros(1, 1, 2 * BLOCK, 3 * BLOCK, dtype=torch.uint8),
        "around": torch.zeros(1, 2, BLOCK, 3 * BLOCK // 2, dtype=torch.uint8),
        "motion": torch.zeros(1, MOTION, *cells),
    }
    encoder: Part = ("encoder", plain(model.encoder, way), encoder_inputs)
    return [
        *([] if model.config.second_stage else [encoder]),
        *(
            (f"filter_{k}", plain(each, way), filter_inputs)
            for k, each in enumerate(model.filters, start=1)
        ),
    ]


def export_onnx(module: nn.Module, inputs: dict[str, torch.Tensor], path: Path) -> None:
    """Height and width of the encoder and the batch of a filter stay free."""
    if "context" in inputs:
        outputs, axes = ["residual", "colour"], {0: "blocks"}
        free = dict.fromkeys([*inputs, *outputs], axes)
    else:
        outputs = ["context", "latents"]
        free = {
            "luma": {2: "height", 3: "width"},
            "around": {2: "half_height", 3: "half_width"},
            "motion": {2: "context_height", 3: "context_width"},
            "context": {2: "context_height", 3: "context_width"},
            "latents": {1: "rows", 2: "columns"},
        }
    with warnings.catch_warnings():
        # The exporter that traces is called deprecated; the other one needs onnxscript.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=outputs,
            dynamic_axes={name: axes for name, axes in free.items() if name in {*inputs, *outputs}},
        )


def _rounded(model: MultiFilter) -> MultiFilter:
    """A copy whose weights are what half precision holds, so that all graphs have the same ones."""
    copied = copy.deepcopy(model)
    for name, value in copied.state_dict().items():
        if not _in_full(name):
            value.copy_(value.half())
    return copied


def _in_full(name: str) -> bool:
    """Whether these are a whitening's, whose large weights of both signs cancel on flat parts.

    Rounded before or after they were folded into the first convolution, they gave two networks that
    differed by 0.7 %.
    """
    return name.endswith(".whitening")


def _folded(name: str) -> bool:
    """Whether a graph's weights are its first layer's, into which the whitening is folded."""
    return "enter." in name


def halve_weights(path: Path) -> None:
    """Store the weights in half precision; a runtime widens them once, when it loads the graph."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(path)
    graph = model.graph
    casts = []
    for weight in graph.initializer:
        if weight.data_type != TensorProto.FLOAT or weight.dims == [] or _folded(weight.name):
            continue
        name = weight.name
        half = numpy_helper.from_array(
            numpy_helper.to_array(weight).astype(np.float16), f"{name}.half"
        )
        weight.CopyFrom(half)
        casts.append(helper.make_node("Cast", [half.name], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(model)
    onnx.save(model, path)
