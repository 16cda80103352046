"""What is in a store, counted and drawn. No subject is named."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from tomoglot.store import layout
from tomoglot.store.catalogue import StudyRow
from tomoglot.store.cut_masks import CutMasks
from tomoglot.store.reader import Store
from tomoglot.studies.atomic import replacing

DRAWN_STUDIES = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Prevalence:
    """How often a finding is present among the studies of a split where it is known."""

    known: int
    present: int

    @property
    def share(self) -> float | None:
        """Share of known studies with the finding; None where none is known."""
        return self.present / self.known if self.known else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A store in numbers.

    `missingness` counts studies by which sequences they have, one pattern a row (a flag for each of `sequences`),
    most frequent first. `prevalence` is by finding, then by split. `spacings_mm` and `shapes` are the distinct ones
    with the number of studies, most frequent first. `cut` tells of masks that the plan's field cuts.
    """

    subjects: int
    studies: int
    simulated: int
    splits: dict[str, tuple[int, int]]
    sequences: dict[str, int]
    missingness: dict[tuple[bool, ...], int]
    shapes: dict[tuple[int, int, int], int]
    spacings_mm: dict[tuple[float, float, float], int]
    reports: int
    distinct_reports: int
    masks: int
    prevalence: dict[str, dict[str, Prevalence]]
    bytes_on_disk: int
    bytes_of_voxels: int
    cut: CutMasks | None


def summarise(store: Store) -> Summary:
    """Count what a store holds; `splits` gives (subjects, studies) of each split."""
    rows = store.rows
    names = sorted({row.split for row in rows})
    by_split = {name: [row for row in rows if row.split == name] for name in names}
    reports = [row.report for row in rows if row.report]
    return Summary(
        subjects=len({row.subject for row in rows}),
        studies=len(rows),
        simulated=sum(row.simulated for row in rows),
        splits={name: (len({row.subject for row in found}), len(found)) for name, found in by_split.items()},
        sequences={name: sum(name in row.sequences for row in rows) for name in store.sequences},
        missingness=dict(Counter(_acquired(store, row) for row in rows).most_common()),
        shapes=dict(Counter(row.shape for row in rows).most_common()),
        spacings_mm=dict(Counter(_rounded(row.spacing_mm) for row in rows).most_common()),
        reports=len(reports),
        distinct_reports=len(set(reports)),
        masks=sum(row.has_mask for row in rows),
        prevalence={
            finding: {name: _prevalence(found, finding) for name, found in by_split.items()}
            for finding in store.findings
        },
        bytes_on_disk=sum((store.path / name).stat().st_size for name in layout.files_under(store.path)),
        bytes_of_voxels=sum(2 * len(row.sequences) * int(np.prod(row.shape)) for row in rows),
        cut=CutMasks.of(rows),
    )


def draw(store: Store, png: Path) -> None:
    """Draw which study has which sequence, and the middle axial slice of each sequence of several studies.

    Slices are shown as on a viewing station: the front of the head up, the subject's left on the right hand side.
    """
    rows = _spread(store.rows, DRAWN_STUDIES)
    columns = len(store.sequences)
    # A backend of its own, so that a program that draws with pyplot is left alone.
    figure = Figure(figsize=(2.6 + 1.5 * columns, 1.9 + 1.5 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = np.ravel(np.asarray(figure.subfigures(1, 2, width_ratios=(2.6, 1.5 * columns))))
    _draw_missingness(store, left)
    axes = right.subplots(len(rows), columns, squeeze=False)
    for line, row in enumerate(rows):
        for column, sequence in enumerate(store.sequences):
            _draw_slice(store, row, sequence, axes[line, column])
            if line == 0:
                axes[line, column].set_title(sequence, fontsize=9)
        axes[line, 0].set_ylabel(f"study {store.rows.index(row) + 1}\n{row.split}", fontsize=7)
    note = "simulated studies" if all(row.simulated for row in store.rows) else "middle axial slices"
    right.suptitle(f"{note}, 1st to 99th percentile, subject's left on the right", fontsize=9)
    with replacing(png) as part:
        figure.savefig(part, dpi=110, format="png")


def _draw_missingness(store: Store, figure: SubFigure) -> None:
    axis = figure.subplots()
    matrix = np.array([_acquired(store, row) for row in store.rows], dtype=float)
    count, columns = matrix.shape
    extent = (-0.5, columns - 0.5, count + 0.5, 0.5)
    axis.imshow(matrix, aspect="auto", cmap="Blues", vmin=-0.15, vmax=1.3, interpolation="nearest", extent=extent)
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    shares = matrix.mean(axis=0)
    labels = [f"{name} {share:.0%}" for name, share in zip(store.sequences, shares, strict=True)]
    axis.set_xticks(range(len(labels)), labels, rotation=90, fontsize=8)
    axis.set_ylabel(f"{len(store.rows)} studies, in catalogue order", fontsize=8)
    axis.tick_params(axis="y", labelsize=7)
    axis.set_title("acquired (dark)", fontsize=9)


def _draw_slice(store: Store, row: StudyRow, sequence: str, axis: Axes) -> None:
    (i, j, k), (i_mm, j_mm, _) = row.shape, row.spacing_mm
    axis.set_box_aspect(j * j_mm / (i * i_mm))
    axis.set_xticks([])
    axis.set_yticks([])
    if sequence not in row.sequences:
        axis.set_facecolor("whitesmoke")
        axis.text(0.5, 0.5, "not acquired", ha="center", va="center", fontsize=7, color="grey")
        return
    plane = store.read_crop(row, (0, 0, k // 2), (i, j, 1), sequences=(sequence,))[0, :, :, 0]
    intensity = row.intensities[sequence]
    axis.imshow(
        shown(plane * intensity.scale + intensity.offset),
        cmap="gray",
        vmin=min(0.0, intensity.percentiles["1"]),
        vmax=intensity.percentiles["99"],
        aspect="auto",
    )


def shown(plane: NDArray[np.floating]) -> NDArray[np.floating]:
    """Axial plane (i to the right of the subject, j to the front) as rows and columns of a radiological picture."""
    return plane[::-1, ::-1].T


def _acquired(store: Store, row: StudyRow) -> tuple[bool, ...]:
    return tuple(name in row.sequences for name in store.sequences)


def _prevalence(rows: list[StudyRow], finding: str) -> Prevalence:
    known = [row.labels[finding] for row in rows if finding in row.labels]
    return Prevalence(known=len(known), present=sum(value > 0.5 for value in known))


def _rounded(spacing_mm: tuple[float, float, float]) -> tuple[float, float, float]:
    i, j, k = (round(size, 3) for size in spacing_mm)
    return i, j, k


def _spread(rows: tuple[StudyRow, ...], count: int) -> list[StudyRow]:
    """`count` rows from first to last at even steps."""
    places = np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))
    return [rows[place] for place in places]
