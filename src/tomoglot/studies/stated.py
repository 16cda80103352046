"""Read a series and hold it against what its data set's own table states: geometry, and the way to Hounsfield units.

Some public sets lost a part of the header on the way to NIfTI: LLD-MMRI's files say 1 x 1 x 1 mm, and the first release
of CT-RATE has stored values whose slope and intercept stand in a table only, while the second has Hounsfield units
beside the same table. Which of the two a file is, its voxels decide: a body in Hounsfield units has air or lung near
-1000 and soft tissue near 0, and never both before and after the same scaling. An `.npz` file has no header at all, and
is read only where its geometry is stated.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from tomoglot.geometry import spacing_mm
from tomoglot.studies.nifti import read_nifti
from tomoglot.studies.npz import read_npz
from tomoglot.studies.radiograph import is_radiograph, read_radiograph
from tomoglot.studies.study import Rejected, Series, Stated, Volume

_AIR_HU, _SOFT_HU = (-1100.0, -600.0), (-200.0, 200.0)
# Chest, abdomen and head all have far more of both than this; a wrong scaling leaves dense bone at most.
_LEAST_SHARE = 0.05
_SPACING_TOLERANCE = 0.01


def read_series(series: Series) -> Volume:
    """Read the file of a series, with what is stated of it made true where the file lacks it.

    Raises:
        Rejected: what `read_nifti`, `read_npz` and `read_radiograph` refuse; `no-geometry` for an `.npz` file whose
            spacing and directions are not stated; `spacing-mismatch` where header and table name different voxel sizes;
            `not-hounsfield` where the voxels are Hounsfield units neither as stored nor scaled, or could be both.
    """
    stated, name = series.stated, series.path.name
    if is_radiograph(series.sequence, series.path):
        return read_radiograph(series.path, stated_mm=None if stated is None else stated.spacing_mm)
    if series.path.suffix.lower() == ".npz":
        if stated is None or None in (stated.spacing_mm, stated.orientation, stated.position_mm):
            what = "an .npz file says neither where its axes point nor how long a voxel is"
            raise Rejected("no-geometry", f"{name}: {what}; convert it to NIfTI, or name the layout of its set")
        volume = read_npz(series.path, key=series.sequence)
    else:
        volume = read_nifti(series.path, channel=series.channel)
    if stated is None:
        return volume
    affine = volume.affine if stated.spacing_mm is None else _spaced(volume.affine, stated, stated.spacing_mm, name)
    voxels = volume.voxels if stated.hounsfield is None else _in_hounsfield(volume.voxels, stated.hounsfield, name)
    return Volume(voxels=voxels, affine=affine)


def _spaced(
    affine: NDArray[np.float64], stated: Stated, steps: tuple[float, float, float], name: str
) -> NDArray[np.float64]:
    header = np.asarray(spacing_mm(affine))
    if not all(math.isfinite(step) and step > 0 for step in steps):
        raise Rejected("spacing-mismatch", f"{name}: the table's voxel size is no three positive numbers")
    if not np.allclose(header, 1.0, rtol=1e-6):
        if np.allclose(header, steps, rtol=_SPACING_TOLERANCE):
            return affine
        said, is_ = " x ".join(f"{step:g}" for step in steps), " x ".join(f"{step:g}" for step in header)
        raise Rejected("spacing-mismatch", f"{name}: voxels of {is_} mm by its header and {said} mm by the table")
    # A header of 1 x 1 x 1 mm says nothing: the steps are the table's, and so are directions where it has them.
    spaced = affine.copy()
    spaced[:3, :3] = affine[:3, :3] * np.asarray(steps)
    if stated.orientation is None or stated.position_mm is None:
        return spaced
    across, down = np.asarray(stated.orientation[:3]), np.asarray(stated.orientation[3:])
    if len(stated.orientation) != 6 or len(stated.position_mm) != 3 or abs(across @ down) > 1e-3:
        raise Rejected("bad-affine", f"{name}: the table's orientation is no two directions at right angles")
    lps = np.column_stack([across, down, np.cross(across, down)]) * np.asarray(steps)
    spaced[:3, :3], spaced[:3, 3] = lps, stated.position_mm
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ spaced


def _in_hounsfield(voxels: NDArray[np.generic], scaling: tuple[float, float], name: str) -> NDArray[np.generic]:
    slope, intercept = scaling
    # Every so many voxels: two million tell the shares to a fraction of a per cent.
    seen = voxels.ravel()[:: max(1, voxels.size // 2_000_000)].astype(np.float64)
    as_stored, scaled = _shares(seen), _shares(seen * slope + intercept)
    is_already, needs_it = min(as_stored) >= _LEAST_SHARE, min(scaled) >= _LEAST_SHARE
    same = slope == 1 and intercept == 0
    if is_already and (same or not needs_it):
        return voxels
    if needs_it and not is_already:
        return voxels.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    evidence = (
        f"{name}: near air {as_stored[0]:.0%} and near water {as_stored[1]:.0%} of its voxels as stored, "
        f"{scaled[0]:.0%} and {scaled[1]:.0%} with slope {slope:g} and intercept {intercept:g}; "
        f"wanted at least {_LEAST_SHARE:.0%} of both in exactly one of the two"
    )
    raise Rejected("not-hounsfield", evidence)


def _shares(values: NDArray[np.float64]) -> tuple[float, float]:
    air, soft = (float(((values >= low) & (values <= high)).mean()) for low, high in (_AIR_HU, _SOFT_HU))
    return air, soft
