"""Back to where a study came from: what was predicted on the store's grid, as NIfTI on the grid of the study's file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tomoglot.geometry import Affine, Grid, resample
from tomoglot.studies.nifti import write_nifti
from tomoglot.studies.study import Volume


def interpolate_native(voxels: NDArray[np.float32], affine: Affine, native: Grid) -> NDArray[np.float32]:
    """Numbers (i, j, k) on the native grid, interpolated; outside the store's field they are zero."""
    # One more voxel all round, equal to its neighbour: a native voxel at the very edge of the field may lie a rounding
    # error outside of it, and nothing is interpolated out there.
    padded = np.pad(voxels, 1, mode="edge")
    moved = affine.copy()
    moved[:3, 3] -= moved[:3, :3].sum(axis=1)
    return resample(padded, moved, native)


def onto_native(
    probabilities: NDArray[np.float32], affine: Affine, native: Grid, *, threshold: float
) -> NDArray[np.uint8]:
    """One region, 0 or 1, on the native grid: probabilities are interpolated, and then compared with the threshold.

    The other way round would give blocks of the store's voxels. Where only axes were turned or cut off, nothing is
    interpolated. Outside the store's field there is no region.
    """
    found = interpolate_native(probabilities, affine, native)
    # What interpolation rounds must not fall below a threshold that it equals.
    return np.asarray(found >= threshold - 1e-6, dtype=np.uint8)


def write_region(
    path: Path,
    probabilities: NDArray[np.float32],
    affine: Affine,
    native: Grid,
    *,
    threshold: float,
    simulated: bool,
) -> None:
    """Write one predicted region (i, j, k) on the native grid, with the native affine.

    The file's description says that it is a research prediction, and whether the study was simulated.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = "simulated study, " if simulated else ""
    volume = Volume(voxels=onto_native(probabilities, affine, native, threshold=threshold), affine=native.affine)
    write_nifti(path, volume, description=f"tomoglot prediction, {kind}research only, not for diagnosis")
