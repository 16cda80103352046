"""A picture of a simulated cohort: a row a study, a column a sequence (or a window of CT), the truth, the report."""

from __future__ import annotations

import csv
import io
import textwrap
from pathlib import Path
from typing import Any

import matplotlib as mpl
import nibabel as nib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tomoglot.geometry import Grid, resample
from tomoglot.studies.atomic import write_bytes
from tomoglot.studies.phantom.files import COHORTS
from tomoglot.studies.phantom.simulated import Cohort


def draw_montage(folder: Path, png: Path, rows: int = 6) -> Path:
    """Draw studies of the cohort in `folder` (written by `write_cohort`) to `png`, one for each kind first.

    Slices are axial, shown as a radiologist sees them (the subject's right on the left), at the largest lesion.
    Raises ValueError when the folder holds no studies.csv.
    """
    table = folder / "studies.csv"
    if not table.is_file():
        raise ValueError(f"no studies.csv in {folder.name}: write the cohort first")
    with table.open(newline="", encoding="utf-8") as file:
        grouped = group(list(csv.DictReader(file)))
    cohort = cohort_of(grouped[0][0])
    studies = choose(grouped, rows, cohort)
    names = [name for name, _ in panels(cohort)]
    columns = len(names) + 2
    widths = [1.0] * (columns - 1) + [3.6]
    figure = Figure(figsize=(1.75 * sum(widths), 2.25 * len(studies) + 0.7), facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(studies), columns, squeeze=False, gridspec_kw={"width_ratios": widths})
    top = 1 - 0.65 / figure.get_figheight()
    figure.subplots_adjust(left=0.03, right=0.995, top=top, bottom=0.01, wspace=0.03, hspace=0.05)
    said = f"Simulated {cohort.name} studies: images, truth and reports are all simulated"
    figure.suptitle(said, fontsize=12, y=0.995)
    for place, (row, study) in enumerate(zip(axes, studies, strict=True)):
        draw_row(row, folder, study, cohort)
        if place == 0:
            for axis, name in zip(row, [*names, "truth", "report (simulated)"], strict=True):
                axis.set_title(name, fontsize=10)
    picture = io.BytesIO()
    with mpl.rc_context({"savefig.dpi": 80}):
        figure.savefig(picture, format="png", metadata={"Description": "simulated"})
    write_bytes(png, picture.getvalue())
    return png


def cohort_of(row: dict[str, str]) -> Cohort:
    """The cohort whose findings are the label columns of a table."""
    labels = {key.removeprefix("label:") for key in row if key.startswith("label:")}
    # Two cohorts may know the same findings and show them otherwise.
    found = [one for one in COHORTS.values() if set(one.findings) == labels and row["sequence"] in one.suffixes]
    if not found:
        raise ValueError(f"the label columns of studies.csv are those of no simulated cohort ({', '.join(COHORTS)})")
    return found[0]


def panels(cohort: Cohort) -> list[tuple[str, tuple[str, float, float] | None]]:
    """Title and window of each column of images: a sequence each, or a window each of the only sequence."""
    if cohort.windows:
        (name,) = cohort.suffixes
        return [(f"{name}, {window[0]} window", window) for window in cohort.windows]
    return [(name, None) for name in cohort.suffixes]


def group(table: list[dict[str, str]]) -> list[list[dict[str, str]]]:
    """Rows of one study together, in the table's order."""
    grouped: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in table:
        grouped.setdefault((row["subject"], row["study"]), []).append(row)
    return list(grouped.values())


def choose(studies: list[list[dict[str, str]]], rows: int, cohort: Cohort) -> list[list[dict[str, str]]]:
    """The first study of each kind that is not shown yet, those with most sequences first, then any others."""
    ordered = sorted(studies, key=len, reverse=True)
    chosen: list[list[dict[str, str]]] = []
    for kind in cohort.kinds:
        found = next((s for s in ordered if s[0][f"label:{kind}"] == "1" and s not in chosen), None)
        if found is not None:
            chosen.append(found)
    return [*chosen, *(s for s in ordered if s not in chosen)][:rows]


def draw_row(axes: NDArray[Any], folder: Path, study: list[dict[str, str]], cohort: Cohort) -> None:
    """One study: its sequences at the level of its largest lesion, the mask, the report."""
    mask_image = nib.load(folder / study[0]["mask"])
    mask, affine = np.asarray(mask_image.dataobj), mask_image.affine
    grid = Grid(mask.shape, affine)
    counts = (mask > 0).sum(axis=(0, 1))
    level = int(counts.argmax()) if counts.any() else round((cohort.level_mm - affine[2, 3]) / affine[2, 2])
    paths = {row["sequence"]: row["path"] for row in study}
    backdrop, outside = None, -1000.0 if cohort.windows else 0.0
    for axis, (title, window) in zip(axes, panels(cohort), strict=False):
        name = title.partition(",")[0]
        blank(axis)
        if name not in paths:
            axis.text(0.5, 0.5, "missing", ha="center", va="center", fontsize=9, color="#666666")
            continue
        image = nib.load(folder / paths[name])
        plane = resample(np.asarray(image.dataobj), image.affine, slab(grid, level), outside=outside)[:, :, 0]
        show(axis, plane, window)
        backdrop = plane if backdrop is None or name in {"flair", "t2w"} else backdrop
        thick = float(image.affine[2, 2])
        axis.text(2, 3, f"{thick:.1f} mm", fontsize=6, color="#ffee55", va="bottom")
    found = [key.removeprefix("label:") for key, value in study[0].items() if key.startswith("label:") and value == "1"]
    axes[0].set_ylabel("\n".join(found).replace("_", " "), fontsize=9)
    draw_truth(axes[-2], backdrop, mask[:, :, level], cohort)
    blank(axes[-1])
    axes[-1].set_axis_off()
    text = (folder / study[0]["report"]).read_text(encoding="utf-8")
    lines = [line for part in text.strip().split("\n\n") for line in [*textwrap.wrap(part, 92), ""]]
    axes[-1].text(0.02, 0.98, "\n".join(lines), fontsize=7.6, va="top", transform=axes[-1].transAxes)


def slab(grid: Grid, level: int) -> Grid:
    """One axial slice of a grid."""
    affine = grid.affine.copy()
    affine[:3, 3] += affine[:3, 2] * level
    return Grid((grid.shape[0], grid.shape[1], 1), affine)


def blank(axis: Any) -> None:
    """No ticks, no frame, a unit square until something is shown."""
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_visible(False)


def show(axis: Any, plane: NDArray[np.floating], window: tuple[str, float, float] | None = None) -> None:
    """A slice in radiological orientation, in a window of CT or in one of what lies inside the brain."""
    if window is not None:
        _, low, high = window
        axis.imshow(plane[::-1].T, origin="lower", cmap="gray", vmin=low, vmax=high, interpolation="bilinear")
        return
    inside = plane[plane > 0]
    low, high = (np.percentile(inside, 1) * 0.6, np.percentile(inside, 99.5)) if inside.size else (0.0, 1.0)
    axis.imshow(plane[::-1].T, origin="lower", cmap="gray", vmin=low, vmax=high, interpolation="bilinear")


def draw_truth(axis: Any, backdrop: NDArray[np.floating] | None, mask: NDArray[np.integer], cohort: Cohort) -> None:
    """The mask's labels in colour over a dim slice, with a legend of those present."""
    blank(axis)
    if backdrop is not None:
        show(axis, backdrop, cohort.windows[0] if cohort.windows else None)
    rgba = np.zeros((*mask.shape, 4))
    names = [name for name, label in cohort.mask_labels.items() if (mask == label).any()]
    for name in names:
        rgba[mask == cohort.mask_labels[name]] = mpl.colors.to_rgba(cohort.colours[name], 0.75)
    axis.imshow(rgba[::-1].transpose(1, 0, 2), origin="lower", interpolation="nearest")
    for place, name in enumerate(names):
        axis.text(2, 3 + 7 * place * mask.shape[1] / 112, name, fontsize=6.5, color=cohort.colours[name], va="bottom")
