"""Smooth shapes under a smooth displacement: what cohorts whose anatomy is made of shapes draw bodies with.

A subject's shapes are written in template positions; the displacement says which template position each voxel sees, so
that planes of the template (segments, fissures) bend with the subject. Positions are millimetres in RAS+.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tomoglot.geometry import Grid
from tomoglot.studies.phantom.drawing import Crop
from tomoglot.studies.phantom.fields import Floats, smooth_field

Place = Sequence[float] | NDArray[np.floating]
WHOLE: Crop = (slice(None), slice(None), slice(None))


@dataclass(slots=True, eq=False)
class Shapes(ABC):
    """A grid, and the template position that each of its voxels sees (3, i, j, k)."""

    grid: Grid
    seen: Floats

    @abstractmethod
    def paint(self, crop: Crop, tissue: str, share: Floats) -> None:
        """Replace a share (0 to 1) of what is in the crop by a tissue."""

    def solid(self, gap_mm: Floats) -> Floats:
        """Share of each voxel inside a shape, from the distance to its surface in mm (negative inside)."""
        return np.clip(0.5 - gap_mm / np.float32(self.grid.spacing_mm[0]), 0, 1)

    def around(self, low_mm: Place, high_mm: Place) -> Crop:
        """Crop that surely holds a template box, whatever the displacement."""
        first = self.grid.affine[:3, 3]
        step = self.grid.spacing_mm[0]
        low = np.clip((np.asarray(low_mm) - 28.0 - first) // step, 0, np.asarray(self.grid.shape) - 1).astype(int)
        high = np.clip((np.asarray(high_mm) + 28.0 - first) // step + 2, low + 1, self.grid.shape).astype(int)
        return slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2])

    def ellipsoid(
        self, centre: Place, radii: Place, crop: Crop | None = None, *, turn: NDArray[np.floating] | None = None
    ) -> tuple[Crop, Floats]:
        """A crop about an ellipsoid and the distance to its surface there, to first order.

        The rows of `turn` are the directions of its axes, where they are not those of the body.
        """
        middle, axes = np.asarray(centre, dtype=np.float32), np.asarray(radii, dtype=np.float32)
        if crop is None:
            reach = axes if turn is None else axes.max()
            crop = self.around(middle - reach, middle + reach)
        away = self.seen[(slice(None), *crop)] - middle[:, None, None, None]
        if turn is not None:
            away = np.tensordot(turn.astype(np.float32), away, axes=1)
        scaled = away / axes[:, None, None, None]
        radius = np.sqrt((scaled**2).sum(axis=0))
        slope = np.sqrt(((scaled / axes[:, None, None, None]) ** 2).sum(axis=0))
        return crop, np.where(slope > 1e-5, (radius - 1.0) * radius / np.maximum(slope, 1e-5), -axes.min())

    def put(self, tissue: str, centre: Place, radii: Place) -> None:
        """Paint an ellipsoid."""
        crop, gap = self.ellipsoid(centre, radii)
        self.paint(crop, tissue, self.solid(gap))

    def tube(self, tissue: str, points: Sequence[Place], radius_mm: float, end_mm: float) -> None:
        """Paint a tube through `points` that tapers from one radius to another."""
        taper = np.linspace(radius_mm, end_mm, len(points))
        for a, b, wide, narrow in zip(points, points[1:], taper, taper[1:], strict=False):
            first, last = np.asarray(a, dtype=np.float32), np.asarray(b, dtype=np.float32)
            crop = self.around(np.minimum(first, last) - wide, np.maximum(first, last) + wide)
            along = last - first
            gap = self.seen[(slice(None), *crop)] - first[:, None, None, None]
            place = np.clip(np.tensordot(along, gap, axes=1) / (along @ along), 0, 1)
            away = np.sqrt(((gap - along[:, None, None, None] * place) ** 2).sum(axis=0))
            self.paint(crop, tissue, self.solid(away - (wide + (narrow - wide) * place)))


def ring(seen: Floats, centre: tuple[float, float], half: tuple[float, float]) -> Floats:
    """Distance in mm to a rounded cylinder along z, measured towards its axis (negative inside)."""
    x, y = seen[0] - np.float32(centre[0]), seen[1] - np.float32(centre[1])
    power = np.float32(2.4)
    level = (np.abs(x / half[0]) ** power + np.abs(y / half[1]) ** power) ** (1 / power)
    return np.hypot(x, y) * (1.0 - 1.0 / np.maximum(level, 1e-3))


def joined(a: Floats, b: Floats, width_mm: float = 7.0) -> Floats:
    """Distance to two shapes that melt into one another."""
    mix = np.clip(0.5 + 0.5 * (b - a) / width_mm, 0, 1)
    return b * (1 - mix) + a * mix - width_mm * mix * (1 - mix)


def draw_seen(grid: Grid, rng: np.random.Generator) -> Floats:
    """Template position of each voxel of one subject: a size of its own within 7 %, a shift, a smooth displacement."""
    axes = [grid.affine[a, 3] + grid.spacing_mm[a] * np.arange(grid.shape[a]) for a in range(3)]
    points = np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)
    scale = 1.0 + rng.normal(0, 0.04, 3).clip(-0.07, 0.07)
    shift = rng.normal(0, [2.0, 2.0, 6.0]).clip(-10, 10)
    seen = ((points - shift[:, None, None, None]) / scale[:, None, None, None]).astype(np.float32)
    for axis in range(3):
        seen[axis] += np.float32(3.5) * smooth_field(rng, grid.shape, 5).clip(-2, 2)
    return seen
