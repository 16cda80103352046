"""Lesions drawn into a subject's tissue fractions, each in a crop about it, with a mask and an instance map.

A lesion is a tissue fraction with a soft, irregular edge, so one formula renders it in every sequence. The mask holds
`MASK_LABELS`; the instance map says which finding owns each voxel, and truth is measured from it after all are drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tomoglot.studies.phantom.anatomy import Head
from tomoglot.studies.phantom.drawing import Crop, blob, crop_about, soft
from tomoglot.studies.phantom.fields import Floats, smooth_field
from tomoglot.studies.phantom.signal import TISSUES

MASK_LABELS: Mapping[str, int] = {"necrosis": 1, "rim": 2, "oedema": 3, "plaque": 4, "infarct": 5, "blood": 6}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One lesion before it is drawn: its kind, where it lies in the template, and how large it is."""

    kind: str
    centre_mm: tuple[float, float, float]
    radius_mm: float
    rim_mm: float = 0.0  # mass: thickness of the enhancing rim; as thick as the radius when solid
    oedema_mm: float = 0.0  # reach beyond the lesion's edge; 0 for none


@dataclass(slots=True, eq=False)
class Canvas:
    """What lesions are drawn into: fractions (tissue, i, j, k) in `TISSUES` order, mask and instance map."""

    head: Head
    fractions: Floats
    mask: NDArray[np.uint8]
    instance: NDArray[np.uint8]

    @classmethod
    def of(cls, head: Head) -> Canvas:
        """A canvas that holds healthy tissue only."""
        fractions = np.zeros((len(TISSUES), *head.grid.shape), dtype=np.float32)
        for name, tissue in (("csf", head.csf), ("gm", head.gm), ("wm", head.wm)):
            fractions[TISSUES.index(name)] = tissue
        empty = np.zeros(head.grid.shape, dtype=np.uint8)
        return cls(head, fractions, empty, empty.copy())

    def crop(self, centre_mm: NDArray[np.floating], half_mm: float) -> tuple[Crop, Floats]:
        """Slices of a cube about a place, cut at the border, and its positions relative to it (3, i, j, k)."""
        return crop_about(self.head.grid, centre_mm, half_mm)

    def paint(self, crop: Crop, tissue: str, share: Floats, owner: int, *, over_csf: bool = False) -> None:
        """Replace a share (0 to 1) of what is in the crop by a tissue; CSF stays unless `over_csf`."""
        part = self.fractions[(slice(None), *crop)]
        csf = TISSUES.index("csf")
        kept_csf = np.zeros_like(share) if over_csf else part[csf] * share
        total = part.sum(axis=0)
        part *= 1.0 - share
        part[csf] += kept_csf
        added = share * total - kept_csf
        part[TISSUES.index(tissue)] += added
        hit = added > 0.5
        self.mask[crop][hit] = MASK_LABELS[tissue]
        self.instance[crop][hit] = owner


def outside_ventricles(canvas: Canvas, crop: Crop) -> Floats:
    """1 where a mass may grow, 0 inside the ventricles."""
    return np.clip(1.0 - 1.5 * canvas.head.ventricles[crop], 0, 1)


def draw_mass(canvas: Canvas, rng: np.random.Generator, plan: Plan, owner: int, *, halo_owner: int) -> None:
    """A mass: oedema along white matter first, then the enhancing part, then its necrotic core."""
    centre = canvas.head.subject_mm(plan.centre_mm)
    crop, offsets = canvas.crop(centre, 1.5 * (plan.radius_mm + plan.oedema_mm))
    edge = 0.25 * canvas.head.grid.spacing_mm[0] / plan.radius_mm
    radius = blob(rng, offsets, plan.radius_mm)
    allowed = outside_ventricles(canvas, crop)
    if plan.oedema_mm:
        draw_halo(canvas, rng, (crop, offsets), plan=plan, owner=halo_owner)
    canvas.paint(crop, "rim", soft(radius, edge) * allowed, owner, over_csf=True)
    if plan.rim_mm < plan.radius_mm:
        inner = plan.radius_mm - plan.rim_mm
        core = soft(radius * (plan.radius_mm / inner), edge * plan.radius_mm / inner)
        canvas.paint(crop, "necrosis", core * allowed, owner, over_csf=True)


def draw_halo(canvas: Canvas, rng: np.random.Generator, where: tuple[Crop, Floats], *, plan: Plan, owner: int) -> None:
    """Vasogenic oedema about a lesion: wide in white matter, hardly any in grey."""
    crop, offsets = where
    reach = plan.radius_mm + plan.oedema_mm
    wide = soft(blob(rng, offsets, reach, rough=0.2), 0.08)
    white = np.clip(1.4 * canvas.fractions[TISSUES.index("wm")][crop], 0, 1)
    near = soft(blob(rng, offsets, plan.radius_mm + 0.25 * plan.oedema_mm), 0.1)
    canvas.paint(crop, "oedema", np.maximum(wide * white, near) * outside_ventricles(canvas, crop), owner)


def draw_haemorrhage(canvas: Canvas, rng: np.random.Generator, plan: Plan, owner: int, *, halo_owner: int) -> None:
    """A haematoma, with a thin halo of oedema where the plan has one."""
    centre = canvas.head.subject_mm(plan.centre_mm)
    crop, offsets = canvas.crop(centre, 1.5 * (plan.radius_mm + plan.oedema_mm))
    if plan.oedema_mm:
        draw_halo(canvas, rng, (crop, offsets), plan=plan, owner=halo_owner)
    edge = 0.25 * canvas.head.grid.spacing_mm[0] / plan.radius_mm
    share = soft(blob(rng, offsets, plan.radius_mm), edge) * outside_ventricles(canvas, crop)
    canvas.paint(crop, "blood", share, owner, over_csf=True)


def draw_infarct(canvas: Canvas, rng: np.random.Generator, plan: Plan, owner: int) -> None:
    """A wedge: a cone whose point looks to the ventricles and whose base lies on the cortex; small ones are round."""
    centre = canvas.head.subject_mm(plan.centre_mm)
    crop, offsets = canvas.crop(centre, 1.8 * plan.radius_mm)
    if plan.radius_mm < 8.0:
        share = soft(blob(rng, offsets, plan.radius_mm), 0.12)
    else:
        deep = np.array([np.sign(centre[0]) * 12.0, np.clip(centre[1], -45, 20), 15.0])
        axis = (centre - deep) / np.linalg.norm(centre - deep)
        along = np.tensordot(axis.astype(np.float32), offsets, axes=1) / plan.radius_mm
        across = np.sqrt(np.maximum((offsets**2).sum(axis=0) / plan.radius_mm**2 - along**2, 0.0))
        width = 0.35 + 0.45 * (along + 1.0) * (1.0 + 0.1 * smooth_field(rng, along.shape, 5))
        cone = across / np.maximum(width, 0.05)
        share = soft(np.maximum(cone, np.abs(along) / 1.1), 0.06)
    canvas.paint(crop, "infarct", share, owner)


def draw_plaque(canvas: Canvas, rng: np.random.Generator, plan: Plan, owner: int) -> None:
    """One plaque of demyelination, drawn in a crop of a few voxels; ovoid, at least one voxel large."""
    centre = canvas.head.subject_mm(plan.centre_mm)
    step = canvas.head.grid.spacing_mm[0]
    radius_mm = max(plan.radius_mm, 0.9 * step)
    crop, offsets = canvas.crop(centre, 1.8 * radius_mm)
    radius = blob(rng, offsets, radius_mm, rough=0.08)
    canvas.paint(crop, "plaque", soft(radius, 0.2 * step / radius_mm), owner)
