"""Voxel and world: affines, RAS+ orientation, spacing in mm, resampling.

A grid is a shape and a 4x4 affine that takes voxel indices (i, j, k) to world millimetres (x, y, z) in RAS+.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from nibabel import orientations
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[np.generic]
Affine = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Where voxels are: `shape` along i, j, k and `affine` from voxel to world mm."""

    shape: tuple[int, int, int]
    affine: Affine

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along i, j, k."""
        return spacing_mm(self.affine)

    @property
    def is_flat(self) -> bool:
        """One voxel along k: an image, such as a radiograph."""
        return self.shape[2] == 1

    def same_as(self, other: Grid, *, tolerance_mm: float = 1e-3) -> bool:
        """Equal shape, and every corner within `tolerance_mm` of the other's."""
        if self.shape != other.shape:
            return False
        return bool(np.abs(self.corners_mm() - other.corners_mm()).max() <= tolerance_mm)

    def corners_mm(self) -> NDArray[np.float64]:
        """World positions of the eight corner voxels, 8 x 3."""
        last = np.asarray(self.shape) - 1
        corners = np.array(np.meshgrid(*([0, 1],) * 3, indexing="ij")).reshape(3, 8).T * last
        return to_world(self.affine, corners)

    def centre_mm(self) -> NDArray[np.float64]:
        """World position of the middle of the grid."""
        return to_world(self.affine, (np.asarray(self.shape) - 1) / 2)


def spacing_mm(affine: Affine) -> tuple[float, float, float]:
    """Voxel size along i, j, k: the lengths of the affine's columns."""
    i, j, k = np.sqrt((np.asarray(affine)[:3, :3] ** 2).sum(axis=0))
    return float(i), float(j), float(k)


def to_world(affine: Affine, voxels: NDArray[np.generic]) -> NDArray[np.float64]:
    """Voxel indices (..., 3) to world mm (..., 3)."""
    return np.asarray(voxels, dtype=np.float64) @ affine[:3, :3].T + affine[:3, 3]


def to_ras(voxels: Array, affine: Affine) -> tuple[Array, Affine]:
    """Permute and flip axes so that i, j, k run most nearly to the right, front and head. No interpolation."""
    turn = orientations.io_orientation(affine)
    turned = orientations.apply_orientation(voxels, turn)
    return turned, affine @ orientations.inv_ornt_aff(turn, voxels.shape[:3])


def regular_grid(grid: Grid, step_mm: tuple[float, float, float]) -> Grid:
    """Grid of the same centre and axis directions as `grid`, of spacing `step_mm`, covering its field of view.

    An image keeps its one voxel along k, and its step there: it has no depth to be cut into more.
    """
    if grid.is_flat:
        step_mm = (*step_mm[:2], grid.spacing_mm[2])
    directions = grid.affine[:3, :3] / np.asarray(grid.spacing_mm)
    extent_mm = np.asarray(grid.shape) * np.asarray(grid.spacing_mm)
    shape = np.maximum(1, np.ceil(extent_mm / np.asarray(step_mm) - 1e-6).astype(int))
    return centred_grid(grid.centre_mm(), directions, (int(shape[0]), int(shape[1]), int(shape[2])), step_mm)


def centred_grid(
    centre_mm: NDArray[np.float64],
    directions: NDArray[np.float64],
    shape: tuple[int, int, int],
    step_mm: tuple[float, float, float],
) -> Grid:
    """Grid of `shape` voxels of `step_mm` whose middle lies at `centre_mm`; `directions` has unit columns."""
    affine = np.eye(4)
    affine[:3, :3] = directions * np.asarray(step_mm)
    affine[:3, 3] = centre_mm - affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    return Grid(shape, affine)


def resample(voxels: Array, affine: Affine, grid: Grid, *, order: int = 1, outside: float = 0.0) -> NDArray[np.float32]:
    """Read a volume on another grid: trilinear (`order=1`) or nearest (`order=0`, for masks).

    Where the new voxels are larger than the old, the volume is first smoothed to the new voxel size (Gaussian of
    0.425 new voxels, the width whose half maximum is one voxel), so that fine structure does not alias. Of a volume of
    one voxel along k that voxel is read wherever it is nearest.
    """
    source = np.asarray(voxels, dtype=np.float32)
    old = Grid((source.shape[0], source.shape[1], source.shape[2]), affine)
    if old.same_as(grid):
        return source
    new_to_old = np.linalg.inv(affine) @ grid.affine
    if order > 0:
        # Size of a new voxel measured in old voxels, along each old axis.
        ratio = np.abs(new_to_old[:3, :3]).max(axis=1)
        sigma = np.where(ratio > 1.0, 0.425 * np.sqrt(np.maximum(ratio**2 - 1.0, 0.0)), 0.0)
        if sigma.any():
            source = ndimage.gaussian_filter(source, sigma, mode="nearest", truncate=2.5)
    matrix, shift = new_to_old[:3, :3], new_to_old[:3, 3].copy()
    if old.is_flat:
        # Between two voxels of one value: alone, it would be missed by the last digit of a coordinate.
        source, shift[2] = np.repeat(source, 2, axis=2), shift[2] + 0.5
    off_diagonal = matrix - np.diag(np.diag(matrix))
    # A diagonal matrix lets scipy interpolate axis by axis, several times faster; the result is the same.
    turn = np.diag(matrix) if np.abs(off_diagonal).max() < 1e-9 else matrix
    return ndimage.affine_transform(
        source, turn, shift, output_shape=grid.shape, order=order, mode="constant", cval=outside
    )
