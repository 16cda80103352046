"""A thorax being given findings: the mask, which drawn part owns each voxel, and places that are still free."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tomoglot.geometry import to_world
from tomoglot.studies.lesion import LESIONS
from tomoglot.studies.phantom.chest.lungs import Airways
from tomoglot.studies.phantom.chest.thorax import Build, Thorax
from tomoglot.studies.phantom.drawing import Crop
from tomoglot.studies.phantom.fields import Floats
from tomoglot.studies.phantom.shapes import WHOLE

# A finding's mask has its own name; the heart's size has none, since every heart is a heart.
UNMASKED = ("cardiomegaly",)
FINDINGS = (
    "medical_material", "arterial_wall_calcification", "cardiomegaly", "pericardial_effusion",
    "coronary_artery_wall_calcification", "hiatal_hernia", "lymphadenopathy", "emphysema", "atelectasis", "lung_nodule",
    "lung_opacity", "pulmonary_fibrotic_sequela", "pleural_effusion", "mosaic_attenuation_pattern",
    "peribronchial_thickening", "consolidation", "bronchiectasis", "interlobular_septal_thickening",
)  # fmt: skip
MASK_LABELS = {name: LESIONS[name] for name in FINDINGS if name not in UNMASKED}


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One drawn part of a finding; `detail` is a word for what it is (a device, a kind of node, a form)."""

    type: str
    detail: str = ""


@dataclass(slots=True, eq=False)
class Scene:
    """What the functions that draw findings share."""

    thorax: Thorax
    build: Build
    mask: NDArray[np.uint8]
    instance: NDArray[np.uint8]  # place in `parts` counted from 1
    parts: list[Part] = field(default_factory=list)
    airways: Airways | None = None
    fluid: dict[int, Floats] = field(default_factory=dict)  # mm to the surface of pleural fluid, by side
    taken: list[tuple[NDArray[np.float64], float]] = field(default_factory=list)
    room: Floats | None = None

    @property
    def step_mm(self) -> float:
        """Edge of a voxel."""
        return self.thorax.grid.spacing_mm[0]

    def mark(self, part: Part, crop: Crop, share: Floats, least: float = 0.5) -> None:
        """Put a part into the mask where its share is above `least`, or half of what it reaches where it is thin."""
        top = float(share.max())
        if top < 0.05:
            return
        hit = share > min(least, 0.5 * top)
        self.parts.append(part)
        self.mask[crop][hit] = MASK_LABELS[part.type]
        self.instance[crop][hit] = len(self.parts)

    def lung_room(self) -> Floats:
        """Distance in mm of lung voxels from what is not lung, as it is when first asked."""
        if self.room is None:
            solid = self.thorax.lung > 0.6
            self.room = ndimage.distance_transform_edt(solid, sampling=self.thorax.grid.spacing_mm).astype(np.float32)
        return self.room

    def place(
        self, rng: np.random.Generator, depth_mm: tuple[float, float], radius_mm: float, where: NDArray[np.bool_] | None
    ) -> tuple[NDArray[np.float64], int]:
        """A free place in lung (world mm) at that depth under its surface, or what comes nearest; and its lobe."""
        room = self.lung_room()
        fit = (room >= depth_mm[0]) & (room <= depth_mm[1])
        if where is not None and (fit & where).any():
            fit &= where
        voxels = np.argwhere(fit if fit.any() else room >= 0.9 * room.max())
        points = to_world(self.thorax.grid.affine, voxels)
        free = np.ones(len(points), dtype=bool)
        for centre, radius in self.taken:
            free &= np.linalg.norm(points - centre, axis=1) > radius + radius_mm + 4.0
        open_ = np.flatnonzero(free if free.any() else np.ones_like(free))
        chosen = int(open_[int(rng.integers(len(open_)))])
        self.taken.append((points[chosen], radius_mm))
        return points[chosen], int(self.thorax.lobe[tuple(voxels[chosen])])

    def everywhere(self, part: Part, tissue: str, share: Floats, least: float = 0.5) -> None:
        """Fill a share of lung with a tissue over the whole grid, and mark it."""
        self.mark(part, WHOLE, self.thorax.fill(WHOLE, tissue, share), least)
