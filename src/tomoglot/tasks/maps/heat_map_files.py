"""Heat maps as files: NIfTI on the grid that the study came on, and a picture for a person."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tomoglot.geometry import Affine, spacing_mm
from tomoglot.store.catalogue import StudyRow
from tomoglot.store.inspect import shown
from tomoglot.studies.atomic import replacing
from tomoglot.studies.nifti import write_nifti
from tomoglot.studies.study import Volume
from tomoglot.tasks.maps.native import interpolate_native

LEAST_HEAT = 0.15


def write_heat(path: Path, heat: NDArray[np.float32], affine: Affine, row: StudyRow) -> None:
    """Write one map (i, j, k), over its highest value, on the grid of the study's finest series."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = "simulated study, " if row.simulated else ""
    highest = float(heat.max())
    scaled = heat / highest if highest > 0 else heat
    native = row.native_grid
    volume = Volume(voxels=interpolate_native(scaled, affine, native), affine=native.affine)
    write_nifti(path, volume, description=f"tomoglot heat map, {kind}research only, not for diagnosis")


def draw_overlay(
    png: Path,
    images: Mapping[str, NDArray[np.float32]],
    maps: Mapping[str, NDArray[np.float32]],
    region: NDArray[np.bool_],
    *,
    affine: Affine,
    title: str,
) -> None:
    """Each sequence at the axial plane that shows most of the region: its heat over it, the region as an outline.

    Above, the planes as they are. Planes are shown as on a viewing station: the front up, the subject's left on the
    right hand side.
    """
    plane = int(region.sum(axis=(0, 1)).argmax())
    i_mm, j_mm, _ = spacing_mm(affine)
    figure = Figure(figsize=(0.6 + 2.1 * len(images), 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(images), squeeze=False)
    for column, (sequence, image) in enumerate(images.items()):
        outline = shown(region[:, :, plane].astype(float))
        for line in (0, 1):
            axis = axes[line, column]
            axis.imshow(shown(image[:, :, plane]), cmap="gray", aspect=j_mm / i_mm)
            axis.contour(outline, levels=[0.5], colors="lime", linewidths=0.8)
            axis.set_xticks([])
            axis.set_yticks([])
        axes[0, column].set_title(sequence, fontsize=9)
        heat = shown(maps[sequence][:, :, plane]) / max(float(maps[sequence].max()), 1e-12)
        axes[1, column].imshow(
            heat, cmap="inferno", vmin=0, vmax=1, alpha=np.where(heat > LEAST_HEAT, 0.6, 0.0), aspect=j_mm / i_mm
        )
    axes[0, 0].set_ylabel("plane", fontsize=8)
    axes[1, 0].set_ylabel("with heat, 1 = the map's highest", fontsize=8)
    figure.suptitle(title, fontsize=9)
    png.parent.mkdir(parents=True, exist_ok=True)
    with replacing(png) as part:
        figure.savefig(part, dpi=100, format="png")
