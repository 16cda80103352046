"""What every lung holds: arteries with airways beside them, and veins; a tree of each in every lobe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoglot.geometry import to_world
from tomoglot.studies.phantom.chest.thorax import LOBES, Thorax
from tomoglot.studies.phantom.chest.trees import Doubles, grow, splat_tubes
from tomoglot.studies.phantom.fields import Floats
from tomoglot.studies.phantom.shapes import WHOLE

# Where a lobe's artery with its bronchus, and its vein, enter the lung (template).
ARTERIES: Mapping[str, tuple[float, float, float]] = {
    "right upper": (40, -8, 22), "right middle": (44, 4, -6), "right lower": (44, -16, -8),
    "left upper": (-46, -4, 18), "left lower": (-46, -18, -4),
}  # fmt: skip
VEINS: Mapping[str, tuple[float, float, float]] = {
    "right upper": (36, 6, 4), "right middle": (36, 8, 0), "right lower": (30, -12, -14),
    "left upper": (-38, 4, 6), "left lower": (-34, -14, -12),
}  # fmt: skip
TWIGS = 130  # of each tree
TWIG_MM = 0.95  # radius of a vessel that serves one place
POWER = 1 / 2.6  # of a vessel's radius with what it serves; Murray's law has 1/3, real lungs branch more evenly


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Airways:
    """Pieces of all airways that lie in lungs: world mm, radius of the lumen, twigs served, lobe counted from 1."""

    starts: Doubles
    ends: Doubles
    radii_mm: Doubles
    served: NDArray[np.intp]
    lobe: NDArray[np.intp]
    lumen: Floats


def put_trees(thorax: Thorax, rng: np.random.Generator) -> Airways:
    """Draw vessels and airways into the lungs; returns the airways."""
    grid = thorax.grid
    vessels, airways = list[tuple[NDArray[Any], ...]](), list[tuple[NDArray[Any], ...]]()
    roots = thorax.where([*ARTERIES.values(), *VEINS.values()])
    for number in range(len(LOBES)):
        room = np.argwhere((thorax.lobe == number + 1) & (thorax.lung > 0.5))
        twigs = min(TWIGS, len(room) // 2)
        if twigs < 4:
            continue
        for paired, root in ((True, roots[number]), (False, roots[number + len(LOBES)])):
            chosen = room[rng.choice(len(room), twigs, replace=False)] + rng.uniform(-0.5, 0.5, (twigs, 3))
            starts, ends, served = grow(root, to_world(grid.affine, chosen), rng)
            vessel_mm = TWIG_MM * served**POWER
            vessels.append((starts, ends, vessel_mm))
            if paired:
                open_mm = 0.8 * vessel_mm
                beside = np.array([0.0, 1.0, 0.6]) / 1.17 * (vessel_mm + open_mm + 0.8)[:, None]
                airways.append((starts + beside, ends + beside, open_mm, served, np.full(len(served), number + 1)))
    thorax.fill(WHOLE, "blood", splat_tubes(grid, *joined_parts(vessels)))
    starts, ends, radii, served, lobe = joined_parts(airways)
    large = served >= 9
    drawn = starts[large], ends[large]
    thorax.fill(WHOLE, "airway_wall", splat_tubes(grid, *drawn, radii[large] + 0.9))
    lumen = splat_tubes(grid, *drawn, radii[large])
    thorax.fill(WHOLE, "air", lumen)
    return Airways(starts=starts, ends=ends, radii_mm=radii, served=served, lobe=lobe, lumen=lumen)


def joined_parts(parts: Sequence[tuple[NDArray[Any], ...]]) -> tuple[NDArray[Any], ...]:
    """Each array of every part in one."""
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))
