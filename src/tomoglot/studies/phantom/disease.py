"""Which findings a simulated subject has, and where: drawn before anything is imaged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tomoglot.studies.phantom.anatomy import MassEffect
from tomoglot.studies.phantom.brain import Template, lobe_of
from tomoglot.studies.phantom.lesions import Plan

PRIMARY = {
    "normal": 0.20,
    "mass": 0.23,
    "demyelination": 0.16,
    "infarct": 0.17,
    "haemorrhage": 0.14,
    "volume_loss": 0.10,
}
PLACES = ("frontal", "parietal", "temporal", "occipital", "deep", "cerebellum")
WEIGHTS = (0.25, 0.2, 0.2, 0.15, 0.12, 0.08)


@dataclass(frozen=True, slots=True, kw_only=True)
class Disease:
    """What is wrong with a subject: lesions to draw, mass effects, and volume loss from 0 to 1."""

    kinds: tuple[str, ...]
    lesions: tuple[Plan, ...] = ()
    effects: tuple[MassEffect, ...] = ()
    volume_loss: float = 0.0


def draw_kinds(rng: np.random.Generator, only: str | None = None) -> tuple[str, ...]:
    """The primary disease and what else is there: volume loss with a third, a second focal disease with an eighth."""
    if only is not None and only not in PRIMARY:
        raise ValueError(f"only={only!r} is no kind of simulated study; there are {', '.join(PRIMARY)}")
    primary = str(rng.choice(list(PRIMARY), p=list(PRIMARY.values())))
    with_loss, with_second = rng.random() < 0.35, rng.random() < 0.15
    second = str(rng.choice(["demyelination", "infarct", "haemorrhage"]))
    if only is not None:
        return () if only == "normal" else (only,)
    if primary == "normal":
        return ()
    kinds = [primary]
    if with_second and second != primary:
        kinds.append(second)
    if with_loss and primary not in {"mass", "volume_loss"}:
        kinds.append("volume_loss")
    return tuple(kinds)


class Placer:
    """Draws template positions for lesions and keeps focal ones apart."""

    def __init__(self, template: Template, rng: np.random.Generator) -> None:
        self.rng = rng
        self.template = template
        self.wm = template.wm.ravel()[template.near]
        self.depth_mm = template.depth_mm.ravel()[template.near]
        self.lobes = lobe_of(template.near_mm)
        self.taken: list[np.ndarray] = []

    def place(self, *, least_wm: float, depth_mm: tuple[float, float], least_x: float) -> tuple[float, float, float]:
        """A white-matter position in a lobe drawn by weight, at a depth, off the midline, far from earlier ones."""
        points = self.template.near_mm
        allowed = (self.wm > least_wm) & (self.depth_mm > depth_mm[0]) & (self.depth_mm < depth_mm[1])
        allowed &= np.abs(points[:, 0]) > least_x
        for earlier in self.taken:
            allowed &= ((points - earlier) ** 2).sum(axis=1) > 52.0**2
        for lobe in self.rng.choice(PLACES, size=len(PLACES), replace=False, p=WEIGHTS):
            here = np.flatnonzero(allowed & (self.lobes == lobe))
            if here.size:
                break
        assert here.size, "no room left for a lesion"
        point = points[int(self.rng.choice(here))]
        self.taken.append(point)
        x, y, z = point.tolist()
        return x, y, z

    def plaques(self, count: int) -> list[Plan]:
        """Plaques of 4 to 9 mm: about two in three beside the ventricles, the others under the cortex."""
        wide = self.template.ventricles.ravel()[self.template.near]
        wall = self.template.near_mm[wide > 0.3]
        white = np.flatnonzero(
            (self.wm > 0.8) & (np.abs(self.template.near_mm[:, 0]) > 8) & (self.lobes != "brainstem")
        )
        tries = self.template.near_mm[self.rng.choice(white, size=min(500, white.size), replace=False)]
        gap = np.sqrt(((tries[:, None] - wall[None, :: max(1, len(wall) // 400)]) ** 2).sum(axis=2).min(axis=1))
        near, far = tries[(gap > 3) & (gap < 11)], tries[gap > 14]
        plans: list[Plan] = []
        for _ in range(count):
            pool = near if self.rng.random() < 0.65 else far
            x, y, z = pool[int(self.rng.integers(len(pool)))].tolist()
            radius = float(self.rng.uniform(2.0, 4.5))
            plans.append(Plan(kind="demyelination", centre_mm=(x, y, z), radius_mm=radius))
        return plans


def draw_disease(rng: np.random.Generator, template: Template, kinds: Sequence[str]) -> Disease:
    """Lesions, mass effects and volume loss for the drawn kinds."""
    placer = Placer(template, rng)
    lesions: list[Plan] = []
    effects: list[MassEffect] = []
    volume_loss = 0.0
    for kind in kinds:
        if kind == "volume_loss":
            volume_loss = float(rng.uniform(0.4, 1.0))
        elif kind == "demyelination":
            lesions += placer.plaques(int(rng.integers(5, 16)))
        elif kind == "infarct":
            radius = float(rng.uniform(10, 24)) if rng.random() < 0.8 else float(rng.uniform(6.5, 8))
            centre = placer.place(least_wm=0.3, depth_mm=(6, 16), least_x=16)
            lesions.append(Plan(kind=kind, centre_mm=centre, radius_mm=radius))
        else:
            count = 2 if kind == "mass" and rng.random() < 0.25 else 1
            for _ in range(count):
                plan = draw_focal(rng, placer, kind, small=count == 2)
                lesions.append(plan)
                # Below 0.8 radii, so that the push never folds; only large lesions move the midline.
                low, high = (0.4, 0.75) if plan.radius_mm > 11.0 else (0.1, 0.3)
                push = float(rng.uniform(low, high)) * plan.radius_mm
                effects.append(MassEffect(centre_mm=plan.centre_mm, radius_mm=plan.radius_mm, push_mm=push))
    # Plaques first, so that a mass or a bleed lies over them and never the other way round.
    lesions.sort(key=lambda plan: ("demyelination", "infarct", "haemorrhage", "mass").index(plan.kind))
    return Disease(kinds=tuple(kinds), lesions=tuple(lesions), effects=tuple(effects), volume_loss=volume_loss)


def draw_focal(rng: np.random.Generator, placer: Placer, kind: str, *, small: bool) -> Plan:
    """A mass or a haematoma: radius 7 to 22 mm, with oedema in three of four masses and three of five haematomas."""
    large = not small and rng.random() < 0.55
    radius = float(rng.uniform(13, 22) if large else rng.uniform(7, 12))
    centre = placer.place(least_wm=0.6, depth_mm=(0.55 * radius, 60.0), least_x=10.0 + 0.6 * radius)
    if kind == "haemorrhage":
        radius *= 0.85
        halo = float(rng.uniform(3, 7)) if rng.random() < 0.6 else 0.0
        return Plan(kind=kind, centre_mm=centre, radius_mm=radius, oedema_mm=halo)
    solid = rng.random() < 0.25
    step = placer.template.grid.spacing_mm[0]
    rim = radius if solid else max(float(rng.uniform(0.25, 0.45)) * radius, min(1.2 * step, 0.6 * radius))
    halo = float(rng.uniform(8, 18)) if rng.random() < 0.75 else 0.0
    return Plan(kind=kind, centre_mm=centre, radius_mm=radius, rim_mm=rim, oedema_mm=halo)
