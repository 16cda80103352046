"""Heat maps that have not read the study: the middle of its body, and where a network looks in everybody else.

A network's maps are worth something only where they point better than these.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from tomoglot.geometry import Affine, Grid, resample, to_world

STEP_MM = 8.0


def middle_mm(body: NDArray[np.bool_], affine: Affine) -> NDArray[np.float64]:
    """Centre of gravity (x, y, z) of a body (i, j, k).

    Raises:
        ValueError: there is no body.
    """
    if not body.any():
        raise ValueError("nothing was imaged: there is no body to find the middle of")
    return to_world(affine, np.argwhere(body).mean(axis=0))


def middle_map(body: NDArray[np.bool_], affine: Affine) -> NDArray[np.float32]:
    """Nearness to the middle of the body: 1 there, 0 at its farthest voxel, linear in mm between."""
    places_mm = to_world(affine, np.moveaxis(np.indices(body.shape), 0, -1))
    away_mm = np.linalg.norm(places_mm - middle_mm(body, affine), axis=-1)
    return np.clip(1 - away_mm / max(float(away_mm[body].max()), 1e-6), 0, 1).astype(np.float32)


class MeanMaps:
    """The mean map of each finding over subjects, laid over one another by the middle of the body.

    Kept in steps of 8 mm: what is lost is finer than the steps of the networks' own maps. Each subject counts once.
    """

    def __init__(self, reach_mm: float = 240.0) -> None:
        """Keep what lies within `reach_mm` of the middle, along each axis."""
        edge = 2 * int(reach_mm // STEP_MM) + 1
        affine = np.diag([STEP_MM, STEP_MM, STEP_MM, 1.0])
        affine[:3, 3] = -(edge // 2) * STEP_MM
        self._grid = Grid((edge, edge, edge), affine)
        self._maps: dict[str, dict[int, list[NDArray[np.float32]]]] = defaultdict(lambda: defaultdict(list))

    def add(
        self, finding: str, subject: int, heat: NDArray[np.float32], *, body: NDArray[np.bool_], affine: Affine
    ) -> None:
        """One map (i, j, k), over its highest value."""
        highest = float(heat.max())
        scaled = heat / highest if highest > 0 else heat
        moved = _centred(body, affine)
        self._maps[finding][subject].append(resample(scaled, moved, self._grid).astype(np.float16))

    def of_others(
        self, finding: str, subject: int, *, body: NDArray[np.bool_], affine: Affine
    ) -> NDArray[np.float32] | None:
        """The mean over all subjects but one, on that one's grid; None where there is no other."""
        others = [np.mean(maps, axis=0) for other, maps in self._maps[finding].items() if other != subject]
        if not others:
            return None
        mean = np.mean(others, axis=0).astype(np.float32)
        i, j, k = body.shape
        return resample(mean, self._grid.affine, Grid((i, j, k), _centred(body, affine)))


def _centred(body: NDArray[np.bool_], affine: Affine) -> Affine:
    """The affine of a world whose origin is the middle of the body."""
    moved = affine.copy()
    moved[:3, 3] -= middle_mm(body, affine)
    return moved
