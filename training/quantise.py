"""Make int8 graphs for OpenVINO of a model's nets."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vdeblur.model import MultiFilter

from .calibrate import whole
from .cutting import blocks_of, context_of
from .data import Clip
from .patches import stack
from .ranges import Inputs, Sample

if TYPE_CHECKING:
    import openvino

BATCH = 16
"""Blocks that are calibrated with at once."""


def calibration_inputs(
    model: MultiFilter, clips: Sequence[Clip]
) -> tuple[list[Inputs], dict[str, list[Sample]]]:
    """What the encoder and, by its graph's name, each filter sees of the clips' middle frames."""
    frames, blocks, labels = [], [], []
    for clip in clips:
        patch = stack([whole(clip, len(clip.luma) // 2)])
        seen = {"luma": patch.own, "around": patch.around, "motion": patch.motion}
        with torch.inference_mode():
            context, latents = model.encoder(*seen.values())
            labels.append(model.log_responsibilities(latents.flatten(0, 2)).argmax(dim=1))
        frames.append({name: each.contiguous().numpy() for name, each in seen.items()})
        cut = blocks_of(patch, model.config)
        given = cut.luma, cut.chroma, context_of(context), cut.luma_target, cut.chroma_target
        blocks.append(given)
    parts = [torch.cat(each) for each in zip(*blocks, strict=True)]
    label = torch.cat(labels)
    samples = dict[str, list[Sample]]()
    for cluster in range(1, model.config.n_clusters):
        rows = torch.nonzero(label == cluster).flatten()
        if not len(rows):  # a cluster that these clips do not visit
            rows = torch.arange(len(label))
        samples[f"filter_{cluster}"] = [
            _sample(*(each[batch] for each in parts)) for batch in torch.split(rows, BATCH)
        ]
    return frames, samples


def _sample(
    luma: torch.Tensor,
    chroma: torch.Tensor,
    context: torch.Tensor,
    luma_target: torch.Tensor,
    chroma_target: torch.Tensor,
) -> Sample:
    inputs = {"luma": luma.numpy(), "chroma": chroma.numpy(), "context": context.numpy()}
    return Sample(inputs, luma_target, chroma_target)


def quantise(path: Path, inputs: Sequence[Inputs]) -> "openvino.Model":
    """The ONNX graph with 8 bits for weights and activations.

    The whitening stays in floating point: its large weights of both signs cancel where the picture
    is flat, and rounded they do not (8.6 % of the residual's energy was lost, 0.9 % without). So do
    the few numbers that come of the motion: rounded they made the encoder's output several times
    too large.

    Weights use half of their range. Processors without VNNI add two products in 16 bits, which
    else overflow: the mild filter's residual came out 56 % wrong by its energy, now 5 %, and
    where they do not overflow nothing is lost.

    Each range is the median over the samples of the largest values: what `fit_ranges` begins with.
    """
    import nncf
    import openvino
    from nncf.quantization.advanced_parameters import OverflowFix
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    nncf.set_log_level(logging.ERROR)
    graph = openvino.Core().read_model(path.read_bytes())
    exact = [
        node.get_friendly_name()
        for node in graph.get_ordered_ops()
        if node.get_type_name() != "Constant" and _stays_exact(node.get_friendly_name())
    ]
    return nncf.quantize(
        graph,
        nncf.Dataset(inputs),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(inputs),
        ignored_scope=nncf.IgnoredScope(names=exact),
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            overflow_fix=OverflowFix.ENABLE,
            activations_range_estimator_params=RangeEstimatorParametersSet.MEDIAN_MINMAX,
        ),
    )


def _stays_exact(node: str) -> bool:
    node = node.removeprefix("/encoder")
    if node.startswith("/enter/"):
        return not node.startswith("/enter/conv/")
    return node.startswith(("/description/", "/moving/"))


def save_int8(graph: "openvino.Model", path: Path) -> None:
    """Write a graph as small as it gets: without the spaces that make a quarter of its XML."""
    import openvino

    openvino.save_model(graph, path, compress_to_fp16=False)
    path.write_text("".join(line.strip() for line in path.read_text().splitlines()))
