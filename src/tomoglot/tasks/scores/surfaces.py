"""How well a predicted region covers the true one: Dice, and the distances between the two surfaces in mm.

A surface is the set of voxels of the region with a face on something else (the edge of the volume counts as something
else). Distances are between centres of surface voxels, not between smooth surfaces: on a coarse grid they come in
steps of a voxel, so a tolerance below the voxel size asks for equality.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Region = NDArray[np.bool_]
SpacingMm = tuple[float, float, float]


def dice(predicted: Region, true: Region) -> float:
    """Twice the common voxels over the sum of both (Dice 1945); NaN where both are empty."""
    total = int(predicted.sum()) + int(true.sum())
    return 2 * int((predicted & true).sum()) / total if total else float("nan")


def surface_distances_mm(
    predicted: Region, true: Region, spacing_mm: SpacingMm
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distance of each predicted surface voxel to the nearest true one, and of each true one to the nearest predicted.

    Raises:
        ValueError: one of the two regions is empty, so there is no distance.
    """
    if not predicted.any() or not true.any():
        raise ValueError("a surface distance needs a voxel in both regions; decide what an empty one costs before")
    # The nearest surface voxel of either lies in the box round both: outside it nothing need be computed.
    box = ndimage.find_objects((predicted | true).astype(np.uint8))[0]
    ours, theirs = _surface(predicted[box]), _surface(true[box])
    to_theirs = ndimage.distance_transform_edt(~theirs, sampling=spacing_mm)
    to_ours = ndimage.distance_transform_edt(~ours, sampling=spacing_mm)
    return to_theirs[ours], to_ours[theirs]


def hd95_mm(from_predicted: NDArray[np.float64], from_true: NDArray[np.float64]) -> float:
    """The larger of the two directed 95th percentiles of surface distance (as MONAI has it; BraTS pools them)."""
    return float(max(np.percentile(from_predicted, 95), np.percentile(from_true, 95)))


def nsd(from_predicted: NDArray[np.float64], from_true: NDArray[np.float64], *, tolerance_mm: float) -> float:
    """Normalised surface Dice: share of both surfaces within the tolerance of the other (Nikolov 2018, sec. 4).

    Surface voxels are counted, each alike, where the source weighs patches by their area.
    """
    close = int((from_predicted <= tolerance_mm).sum()) + int((from_true <= tolerance_mm).sum())
    return close / (from_predicted.size + from_true.size)


def _surface(region: Region) -> Region:
    return np.asarray(region & ~ndimage.binary_erosion(region))
