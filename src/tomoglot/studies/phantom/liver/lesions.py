"""Focal lesions of the liver: which a subject has, where, and how each is built of tissues that take up agent apart.

A lesion is confined to the liver. The mask holds the whole lesion under its kind's number in `lesion.LESIONS`; its
parts (capsule, core, scar, wall, nodules) are tissues of their own, because what tells the kinds apart is when which
part is bright.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from tomoglot.geometry import to_world
from tomoglot.studies.lesion import LESIONS
from tomoglot.studies.phantom.drawing import Crop, blob, crop_about, soft
from tomoglot.studies.phantom.fields import Floats, smooth_field
from tomoglot.studies.phantom.liver.torso import Torso, room_mm

# The finding and the label of its mask.
MASKS: Mapping[str, str] = {
    "hcc": "hcc", "icc": "icc", "metastasis": "liver_metastasis", "cyst": "liver_cyst",
    "haemangioma": "haemangioma", "fnh": "fnh", "abscess": "liver_abscess",
}  # fmt: skip
MASK_LABELS: Mapping[str, int] = {name: LESIONS[name] for name in MASKS.values()}
NORMAL_SHARE = 0.16
SECOND_SHARE = 0.15  # studies with a lesion that also hold a cyst or a haemangioma found by chance
RADII_MM: Mapping[str, tuple[float, float]] = {
    "hcc": (11, 30), "icc": (15, 32), "metastasis": (7, 15), "cyst": (6, 24), "haemangioma": (11, 28), "fnh": (12, 28),
    "abscess": (14, 28),
}  # fmt: skip
SEVERAL: Mapping[str, tuple[int, int]] = {"hcc": (1, 2), "metastasis": (3, 7), "cyst": (1, 4), "haemangioma": (1, 2)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One lesion before it is drawn. `rim` is a carcinoma that is bright at its border only, around a dead core."""

    kind: str
    centre_mm: tuple[float, float, float]
    radius_mm: float
    rim: bool = False


def draw_kinds(rng: np.random.Generator, only: str | None = None) -> tuple[str, ...]:
    """The kinds of lesion a subject has: none, one, or one and a second found by chance."""
    if only is not None and only not in ("normal", *MASKS):
        raise ValueError(f"only={only!r} is no kind of simulated liver study; there are normal, {', '.join(MASKS)}")
    normal, with_second = rng.random() < NORMAL_SHARE, rng.random() < SECOND_SHARE
    primary, second = str(rng.choice(list(MASKS))), str(rng.choice(["cyst", "haemangioma"]))
    if only is not None:
        return () if only == "normal" else (only,)
    if normal:
        return ()
    return (primary, second) if with_second and second != primary else (primary,)


def draw_plans(rng: np.random.Generator, torso: Torso, kinds: tuple[str, ...]) -> list[Plan]:
    """Lesions with places that do not touch one another, mostly inside the liver and off its large vessels."""
    room = room_mm(torso)
    places = np.argwhere(room > 0)
    depth, points = room[tuple(places.T)], to_world(torso.grid.affine, places)
    plans: list[Plan] = []
    for number, kind in enumerate(kinds):
        low, high = RADII_MM[kind]
        least, most = SEVERAL.get(kind, (1, 1))
        rim = rng.random() < 0.3
        for _ in range(1 if number else int(rng.integers(least, most + 1))):
            # Large ones are as frequent as small ones; a second kind, found by chance, is small.
            radius = float(rng.uniform(low, high if not number else 0.5 * (low + high)))
            free = depth > 0.75 * radius
            for earlier in plans:
                gap = np.sqrt(((points - earlier.centre_mm) ** 2).sum(axis=1))
                free &= gap > radius + earlier.radius_mm + 8.0
            if free.any():
                x, y, z = points[int(rng.choice(np.flatnonzero(free)))].tolist()
                plans.append(Plan(kind=kind, centre_mm=(x, y, z), radius_mm=radius, rim=rim))
    return plans


class Brush:
    """Draws into one crop of a torso, never outside the liver, and marks mask and instance map."""

    def __init__(self, torso: Torso, rng: np.random.Generator, plan: Plan) -> None:
        self.torso, self.rng, self.plan = torso, rng, plan
        self.step_mm = torso.grid.spacing_mm[0]
        self.crop: Crop
        self.crop, self.offsets = crop_about(torso.grid, np.asarray(plan.centre_mm), 1.6 * plan.radius_mm + 8.0)
        self.allowed = torso.liver[self.crop]

    def radius(self, *, rough: float) -> Floats:
        """Irregular radius field of the lesion: 1 on its surface."""
        return blob(self.rng, self.offsets, self.plan.radius_mm, rough=rough)

    def inside(self, radius: NDArray[np.floating]) -> Floats:
        """Share inside the surface 1 of a radius field, with an edge of a quarter voxel."""
        return soft(radius.astype(np.float32), 0.25 * self.step_mm / self.plan.radius_mm)

    def shrunk(self, radius: Floats, by_mm: float) -> Floats:
        """Radius field of what lies more than `by_mm` below the surface."""
        return radius * (self.plan.radius_mm / max(self.plan.radius_mm - by_mm, 0.15 * self.plan.radius_mm))

    def noise(self, knots: int) -> Floats:
        """Smooth noise of about unit variance over the crop."""
        i, j, k = self.offsets.shape[1:]
        return smooth_field(self.rng, (i, j, k), knots)

    def fill(self, tissue: str, share: Floats) -> None:
        """Paint a share of a tissue."""
        self.torso.paint(self.crop, tissue, share * self.allowed)


def draw_hcc(brush: Brush, radius: Floats) -> None:
    """Hepatocellular carcinoma: bright all over, or at its border about a dead core; patchy; a thin capsule."""
    brush.fill("capsule", brush.inside(radius))
    tumour = brush.inside(brush.shrunk(radius, max(2.2, 0.55 * brush.step_mm)))
    brush.fill("hcc", tumour)
    if brush.plan.rim:
        brush.fill("hcc_core", brush.inside(brush.shrunk(radius, 0.42 * brush.plan.radius_mm)))
    else:
        brush.fill("hcc_core", tumour * np.clip(0.9 * brush.noise(6) - 0.9, 0, 0.6))


def draw_icc(brush: Brush, radius: Floats) -> None:
    """Cholangiocarcinoma: cells at the border, a large fibrous middle that fills late."""
    brush.fill("icc", brush.inside(radius))
    brush.fill("icc_core", brush.inside(brush.shrunk(radius, 0.26 * brush.plan.radius_mm)))


def draw_metastasis(brush: Brush, radius: Floats) -> None:
    """A metastasis: a rim of living cells and a middle without much blood."""
    brush.fill("metastasis", brush.inside(radius))
    rim_mm = max(0.30 * brush.plan.radius_mm, min(0.9 * brush.step_mm, 0.5 * brush.plan.radius_mm))
    brush.fill("metastasis_core", brush.inside(brush.shrunk(radius, rim_mm)))


def draw_cyst(brush: Brush, radius: Floats) -> None:
    """A simple cyst: water with a sharp edge."""
    brush.fill("cyst", brush.inside(radius))


def draw_haemangioma(brush: Brush, radius: Floats) -> None:
    """A haemangioma: nodules at the border fill first, then shell after shell towards the middle."""
    uneven: Floats = radius + np.float32(0.10) * np.clip(brush.noise(6), -2, 2)
    brush.fill("haemangioma_1", brush.inside(radius))
    nodules = brush.inside(radius) * (1 - brush.inside(uneven * 1.45)) * np.clip(1.6 * brush.noise(7) + 0.5, 0, 1)
    brush.fill("haemangioma_0", nodules)
    brush.fill("haemangioma_2", brush.inside(uneven * 1.5))
    brush.fill("haemangioma_3", brush.inside(uneven * (2.6 if brush.plan.radius_mm > 18 else 3.6)))


def draw_fnh(brush: Brush, radius: Floats) -> None:
    """Focal nodular hyperplasia: even, nearly liver, with a central scar that sends out spokes."""
    brush.fill("fnh", brush.inside(radius))
    planes = Rotation.random(3, rng=brush.rng).as_matrix()[:, 0].astype(np.float32)
    gaps = np.abs(np.tensordot(planes, brush.offsets, axes=1))
    thin = max(0.09 * brush.plan.radius_mm, 0.45 * brush.step_mm)
    spokes = brush.torso.solid(gaps.min(axis=0) - thin) * brush.inside(radius / 0.52)
    brush.fill("scar", np.maximum(spokes, brush.inside(radius / 0.24)))


def draw_abscess(brush: Brush, radius: Floats) -> None:
    """An abscess: oedema, a wall, and pus in one to four pockets."""
    pockets = radius
    for _ in range(int(brush.rng.integers(0, 4))):
        way = Rotation.random(rng=brush.rng).as_matrix()[0].astype(np.float32) * 0.75 * brush.plan.radius_mm
        size = float(brush.rng.uniform(0.45, 0.65)) * brush.plan.radius_mm
        away = np.sqrt(((brush.offsets - way[:, None, None, None]) ** 2).sum(axis=0))
        pockets = np.minimum(pockets, 1.0 + (away - size) / brush.plan.radius_mm)
    brush.fill("halo", 0.8 * brush.inside(1.0 + (pockets - 1.0 - 7.0 / brush.plan.radius_mm) / 1.5))
    brush.fill("wall", brush.inside(pockets))
    wall_mm = max(0.2 * brush.plan.radius_mm, min(0.9 * brush.step_mm, 0.4 * brush.plan.radius_mm))
    brush.fill("pus", brush.inside(pockets + wall_mm / brush.plan.radius_mm))
    radius[...] = pockets


SHAPES = {
    "hcc": (draw_hcc, 0.08), "icc": (draw_icc, 0.17), "metastasis": (draw_metastasis, 0.08), "cyst": (draw_cyst, 0.04),
    "haemangioma": (draw_haemangioma, 0.13), "fnh": (draw_fnh, 0.07), "abscess": (draw_abscess, 0.08),
}  # fmt: skip


def draw(torso: Torso, rng: np.random.Generator, plans: list[Plan]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw every lesion into the torso's fractions.

    Returns the mask in numbers of `lesion.LESIONS`, and the plan (counted from 1) that owns each voxel.
    """
    mask = np.zeros(torso.grid.shape, dtype=np.uint8)
    instance = mask.copy()
    for number, plan in enumerate(plans, 1):
        brush = Brush(torso, rng, plan)
        shape, rough = SHAPES[plan.kind]
        radius = brush.radius(rough=rough)
        shape(brush, radius)
        hit = brush.inside(radius) * brush.allowed > 0.5
        mask[brush.crop][hit] = MASK_LABELS[MASKS[plan.kind]]
        instance[brush.crop][hit] = number
    return mask, instance
