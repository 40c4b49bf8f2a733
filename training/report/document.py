"""Write docs/report.md: our numbers beside the report's, from the results that are there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .evaluate import Result
from .figures import draw_curves, draw_scatter

Cells = tuple[str, str, str, str, str, str]


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the report's final table."""

    name: str
    title: str
    reported: Cells
    """PSNR, share, SSIM, share, UQI, share."""


NOISY: Cells = ("11.37", "-", "0.5593", "-", "0.5965", "-")
NONE: Cells = ("-",) * 6
ROWS = (
    Row("conv-ae", "Conv AE", ("29.07", "93.33 %", "0.8428", "100 %", "0.9763", "94.7 %")),
    Row(
        "conv-ae-ncut",
        "Conv AE + N-cut",
        ("25.67", "78.7 %", "0.7429", "97.3 %", "0.9601", "90.7 %"),
    ),
    Row(
        "resnet-ncut", "ResNet + N-cut", ("25.58", "90.7 %", "0.7314", "90.7 %", "0.9504", "77.3 %")
    ),
    Row("vae", "VAE", ("10.37", "96.3 %", "-", "-", "-", "-")),
    Row("vae-resnet", "VAE + ResNet", ("0.0439", "75.3 %", "-", "-", "-", "-")),
    Row("vae-vgg16", "VAE + VGG16", ("0.0279", "58.7 %", "-", "-", "-", "-")),
    Row("conv-ae-contrastive", "Conv AE contrastive", NONE),
    Row("conv-ae-seeded", "Conv AE, seeded clusters", NONE),
    Row("conv-ae-joint", "Conv AE, seeded clusters, joint", NONE),
    Row("conv-ae-augmented", "Conv AE, augmented CelebA", NONE),
    Row("conv-ae-celeba32", "Conv AE, CelebA 32x32", NONE),
    Row("conv-ae-mnist", "Conv AE, MNIST", NONE),
)

INTRODUCTION = """\
# The report, reproduced

"Autoencoder Project Summary" (Yang and Zheng) splits pictures into small blocks, embeds them,
clusters them in the latent space and restores each cluster by a filter of its own. `vdeblur train
report --all --data FOLDER --out RUNS` trains each of its experiments, `--docs docs` writes this
page. A cell has our number and, in brackets, the report's. A share is that of the validation
pictures on which the multi-filter beats the single filter of the control. A dash means that it
has not been trained here; no number on this page comes from anything but a finished measurement.

"""

METHOD = """
## What is ours where the report leaves it open

* **Blocks** of 18 x 18 share 4 pixels with each neighbour: a step of 14 makes exactly 324 of them
  of a picture of 256 x 256, nothing is padded. Those of 16 x 16 share 4 as well; MNIST's 14 x 14
  lie side by side.
* **Noise.** The report gives its mean PSNR, not its kinds. Ours is salt and pepper on most of the
  degraded part, and Gaussian, speckle and bilateral blur on the rest; it covers 45 % of a picture,
  by smooth random fields. Cover and strength are set so that PSNR and SSIM are the report's.
* **Divergence.** Blocks are made distributions before the KL of equation 2 is taken.
* **UQI** is Wang and Bovik's. The report's lie above its SSIM, which that index hardly ever does;
  "UQI, means" is a form in circulation that puts window means where sums belong.
* **Filters and control** both begin as the first decoder and see each of their blocks as often, on
  latents that no longer change, but in the joint row.
* **The decoder for 16 x 16** is not given by the report; it mirrors the VAE's encoder. VGG16 ends
  before its last pooling, which a block of 16 does not survive.
* **Regularisation** is 1e-9 for L1 and L2 of every layer: at 1e-6 it outweighs the squared error.
"""


def write_document(
    results: Mapping[str, Result], folder: Path, *, remarks: str = "", pictures: bool = False
) -> Path:
    """Write report.md and its figures into `folder`; return the page's path.

    `remarks` is markdown that goes behind the table: what was found, by people. `pictures` says
    that report/pictures.png is there to be shown.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sections = [INTRODUCTION, table(results), remarks, details(results), METHOD]
    if results:
        images = folder / "report"
        images.mkdir(exist_ok=True)
        draw_curves(list(results.values()), images / "losses.png")
        draw_scatter(list(results.values()), images / "latents.png")
        sections.append(_figures(pictures))
        sections.append(_vectors(results))
    page = folder / "report.md"
    page.write_text("".join(sections).rstrip() + "\n")
    return page


def table(results: Mapping[str, Result]) -> str:
    """The final table, a row for each experiment."""
    lines = [
        "| | PSNR, dB | share | SSIM | share | UQI | share |",
        "|---|---|---|---|---|---|---|",
    ]
    if results:
        noisy = next(iter(results.values())).noisy
        ours = (f"{noisy['psnr']:.2f}", "", f"{noisy['ssim']:.4f}", "", f"{noisy['uqi']:.4f}", "")
        lines.append(_line("noisy", ours, NOISY))
    for row in ROWS:
        result = results.get(row.name)
        lines.append(_line(row.title, cells(result) if result else NONE, row.reported))
    return "\n".join(lines) + "\n"


def cells(result: Result) -> Cells:
    """Our six numbers."""
    multi, shares = result.multi, result.shares
    return (
        f"{multi['psnr']:.2f}",
        f"{100 * shares['psnr']:.1f} %",
        f"{multi['ssim']:.4f}",
        f"{100 * shares['ssim']:.1f} %",
        f"{multi['uqi']:.4f}",
        f"{100 * shares['uqi']:.1f} %",
    )


def _line(title: str, ours: Sequence[str], reported: Sequence[str]) -> str:
    pairs = [
        f"**{our}** ({their})" if our not in ("", "-") else f"{our or '-'} ({their})"
        for our, their in zip(ours, reported, strict=True)
    ]
    return f"| {title} | {' | '.join(pairs)} |"


def details(results: Mapping[str, Result]) -> str:
    """What the report has no column for."""
    lines = [
        "\n## In detail\n",
        "Epochs are those of encoder and decoder, then of filters and control, each of those "
        'planned. "Bottleneck" is what a linear code as short as the latent makes of the clean '
        "pictures: about the best that can be hoped for behind it.\n",
        "| | epochs | minutes | single, dB | multi, dB | degraded part: noisy, single, multi, dB "
        "| UQI, means | squared error | silhouette | blocks told rightly | bottleneck, dB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in ROWS:
        if row.name in results:
            lines.append(_detail(row.title, results[row.name]))
    return "\n".join(lines) + "\n" if results else ""


def _detail(title: str, result: Result) -> str:
    epochs = ", ".join(f"{done} of {planned}" for done, planned in result.epochs.values())
    regional = ", ".join(
        f"{part['regional_psnr']:.2f}" for part in (result.noisy, result.single, result.multi)
    )
    title = f"{title} ({'; '.join(result.notes)})" if result.notes else title
    return (
        f"| {title} | {epochs} | {result.minutes:.0f} | {result.single['psnr']:.2f} "
        f"| {result.multi['psnr']:.2f} | {regional} | {result.multi['uqi_means']:.4f} "
        f"| {result.squared_error:.4f} | {result.silhouette:.3f} | {100 * result.purity:.1f} % "
        f"| {result.linear_bound:.2f} |"
    )


def _figures(pictures: bool) -> str:
    shown = (
        "A public-domain picture: noisy, by the single filter, by the multi-filter, the truth; "
        "Conv AE:\n\n![Noisy, single, multi, truth](report/pictures.png)\n\n"
    )
    return (
        "\n## Figures\n\n" + (shown if pictures else "") + "Reconstruction loss of each phase:\n\n"
        "![Losses over the epochs](report/losses.png)\n\n"
        "Latents of validation blocks on their two principal axes, coloured by cluster, with the "
        "silhouette:\n\n![Latents](report/latents.png)\n"
    )


def _vectors(results: Mapping[str, Result]) -> str:
    lines = [
        "\n## Label vectors (section 2.2)\n",
        "| | cluster | contrast | gradient | low | middle | high | change |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in ROWS:
        if row.name in results:
            for cluster, vector in results[row.name].label_vectors.items():
                values = " | ".join(f"{value:.3f}" for value in vector.values())
                lines.append(f"| {row.title} | {cluster} | {values} |")
    return "\n".join(lines) + "\n"
