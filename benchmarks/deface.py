"""What defacing takes from a whole head and what it leaves: brain, facial skin, seconds, and a picture of the surface.

    python benchmarks/deface.py HEAD.nii.gz BRAIN.nii.gz [PICTURE.png]

BRAIN is a mask or a brain-only image on the grid of HEAD, made by somebody else: it decides which voxels are brain.
The face is defined by the skin alone: from above the eyes down, and 20 mm deep (see `face_of`).
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tomoglot.geometry import spacing_mm, to_ras
from tomoglot.studies.deface import deface
from tomoglot.studies.nifti import read_nifti

matplotlib.use("Agg")
from matplotlib import pyplot

Mask = NDArray[np.bool_]


def tissue_of(voxels: NDArray[np.generic]) -> Mask:
    """The head without the air around it: brighter than a tenth of the 99th percentile, largest piece, holes filled."""
    labels, _ = ndimage.label(voxels > 0.1 * np.quantile(voxels, 0.99))
    largest = labels == np.bincount(labels.ravel())[1:].argmax() + 1
    return ndimage.binary_fill_holes(largest)


def face_of(head: Mask, steps_mm: tuple[float, float, float]) -> tuple[Mask, int]:
    """Tissue within 20 mm of the first skin met from the front, over 130 mm of width, up to 20 mm above the nasion.

    The nasion is where the profile of the middle 7 mm lies deepest between forehead and nose: the least advanced row
    of the lower half of the head. Axes run right, front, head.
    """
    middle = int(np.round(ndimage.center_of_mass(head)[0]))
    half = round(3 / steps_mm[0])
    profile = head[middle - half : middle + half + 1].any(0)
    front = np.where(profile.any(0), profile.shape[0] - 1 - profile[::-1].argmax(0), 0)
    rows = np.nonzero(profile.any(0))[0]
    lower = rows[: len(rows) // 3]
    nasion = int(lower[front[lower].argmin()])
    depth = np.cumsum(head[:, ::-1], axis=1)[:, ::-1] * steps_mm[1]
    face = head & (depth <= 20)
    wide = round(65 / steps_mm[0])
    face[: middle - wide] = face[middle + wide :] = False
    face[:, :, nasion + round(20 / steps_mm[2]) + 1 :] = False
    # The side of the head is met from the front as well: only what is before the middle of the head is face.
    face[:, : round(ndimage.center_of_mass(head)[1])] = False
    return face, nasion


def shaded(head: Mask, steps_mm: tuple[float, float, float], turn: float) -> NDArray[np.floating]:
    """The surface as seen from the front after turning the head by `turn` degrees, lit from there."""
    solid = ndimage.zoom(head.astype(np.float32), steps_mm, order=1)
    solid = ndimage.rotate(ndimage.gaussian_filter(solid, 1), turn, axes=(0, 1), order=1)
    hit = solid > 0.5
    depth = np.where(hit.any(1), hit[:, ::-1].argmax(1), hit.shape[1]).astype(np.float32)
    across, up = np.gradient(ndimage.gaussian_filter(depth, 1))
    return np.where(hit.any(1), 1 / np.sqrt(1 + across**2 + up**2), 0).T


def main() -> None:
    """Deface twice, the second time by the clock, and compare with what others say is brain and what is face."""
    volume, brain = read_nifti(Path(sys.argv[1])), read_nifti(Path(sys.argv[2]), allow_constant=True).voxels > 0
    deface(volume)  # the network is loaded once
    wall, cpu = time.perf_counter(), time.process_time()
    done = deface(volume)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    gone = done.volume.voxels != volume.voxels
    turned, affine = to_ras(volume.voxels, volume.affine)
    steps_mm = spacing_mm(affine)
    head = tissue_of(turned)
    gone_ras, left = to_ras(gone, volume.affine)[0], tissue_of(to_ras(done.volume.voxels, volume.affine)[0])
    face, nasion = face_of(head, steps_mm)
    skin = face & (np.cumsum(head[:, ::-1], axis=1)[:, ::-1] == 1)
    below = np.arange(head.shape[2]) <= nasion
    print(f"{Path(sys.argv[1]).name}: {done.outcome}, {done.removed_ml:.0f} ml, {done.removed_share:.1%} of tissue")
    print(f"brain of others: {brain.sum()} voxels, {int((gone & brain).sum())} removed")
    to_brain = ndimage.distance_transform_edt(~to_ras(brain, volume.affine)[0], sampling=steps_mm)
    away = head & ~left & (to_brain > 0)
    print(f"nearest to it that was removed: {to_brain[away].min():.1f} mm")
    print(
        f"nasion at row {nasion}; face {face.sum() * np.prod(steps_mm) / 1000:.0f} ml, {gone_ras[face].mean():.1%} gone"
    )
    print(f"facial skin: {gone_ras[skin].mean():.1%} gone; below the nasion {gone_ras[skin & below].mean():.1%}")
    print(f"{cpu:.1f} s of CPU, {wall:.1f} s of wall time, without loading the network")
    if len(sys.argv) > 3:
        figure, axes = pyplot.subplots(2, 4, figsize=(16, 8))
        for row, solid in enumerate((head, left)):
            for column, turn in enumerate((0, 40, 90)):
                axes[row, column].imshow(shaded(solid, steps_mm, turn), origin="lower", cmap="gray")
            middle = head.shape[0] // 2
            shown = turned if row == 0 else to_ras(done.volume.voxels, volume.affine)[0]
            axes[row, 3].imshow(shown[middle].T, origin="lower", cmap="gray")
            axes[row, 3].contour(face[middle].T, levels=[0.5], colors="r", linewidths=0.6)
        figure.tight_layout()
        figure.savefig(sys.argv[3])


if __name__ == "__main__":
    main()
