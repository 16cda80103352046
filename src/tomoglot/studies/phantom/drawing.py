"""Irregular lesions in a crop of a grid, and what a mask measures: what all cohorts draw with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from tomoglot.geometry import Grid, to_world
from tomoglot.studies.phantom.fields import Floats, smooth_field

Crop = tuple[slice, slice, slice]


def crop_about(grid: Grid, centre_mm: NDArray[np.floating], half_mm: float) -> tuple[Crop, Floats]:
    """Slices of a cube about a place, cut at the grid's border, and its positions relative to it (3, i, j, k)."""
    step = grid.spacing_mm[0]
    middle = (np.asarray(centre_mm) - grid.affine[:3, 3]) / step
    half = half_mm / step
    low = np.clip(np.floor(middle - half), 0, np.asarray(grid.shape) - 2).astype(int)
    high = np.clip(np.ceil(middle + half) + 1, low + 1, grid.shape).astype(int)
    axes = [(np.arange(a, b) - m) * step for a, b, m in zip(low, high, middle, strict=True)]
    offsets = np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)
    return (slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2])), offsets


def blob(rng: np.random.Generator, offsets: Floats, radius_mm: float, *, rough: float = 0.12) -> Floats:
    """Irregular radius field of a random ellipsoid: 1 on its surface, less inside; axes within 25 % of the radius."""
    stretch = np.exp(rng.uniform(-0.22, 0.22, 3))
    axes = radius_mm * stretch / np.cbrt(stretch.prod())
    turn = (Rotation.random(rng=rng).as_matrix() / axes[:, None]).astype(np.float32)
    radius = np.sqrt((np.tensordot(turn, offsets, axes=1) ** 2).sum(axis=0))
    return radius * (1.0 + rough * np.clip(smooth_field(rng, radius.shape, 6), -2, 2))


def soft(radius: Floats, edge: float) -> Floats:
    """Share of a lesion from its radius field: 1 inside, 0 outside, over a soft edge (in radii)."""
    return (1.0 / (1.0 + np.exp(np.clip((radius - 1.0) / edge, -30, 30)))).astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a finding's mask says: volume, centroid in world mm, equivalent ellipsoid's diameters, largest first."""

    volume_ml: float
    centroid_mm: tuple[float, float, float]
    diameters_mm: tuple[float, float, float]


def measure(mask: NDArray[np.bool_], affine: NDArray[np.float64]) -> Measured | None:
    """Measure a mask; None when it is empty.

    The diameters are those of the ellipsoid with the mask's second moments, scaled to the mask's volume, so that
    pi/6 abc is the volume whatever the shape.
    """
    voxels = np.argwhere(mask)
    if not len(voxels):
        return None
    points = to_world(affine, voxels)
    voxel_mm3 = float(abs(np.linalg.det(affine[:3, :3])))
    volume = len(voxels) * voxel_mm3
    # A voxel is not a point: its own second moment is added, which also keeps a single voxel's size right.
    spread = np.cov(points.T, bias=True) if len(voxels) > 1 else np.zeros((3, 3))
    spread = spread + np.eye(3) * voxel_mm3 ** (2 / 3) / 12.0
    axes = 2.0 * np.sqrt(5.0 * np.linalg.eigvalsh(spread)[::-1])
    axes *= np.cbrt(volume / (np.pi / 6.0 * axes.prod()))
    x, y, z = points.mean(axis=0).tolist()
    a, b, c = axes.tolist()
    return Measured(volume_ml=volume / 1000.0, centroid_mm=(x, y, z), diameters_mm=(a, b, c))
