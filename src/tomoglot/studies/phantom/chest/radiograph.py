"""Simulated radiographs of the simulated chest: ray sums of its attenuation, frontal and lateral.

**Geometry.** A cone: a point source `SOURCE_MM` from a flat detector, as in a chest stand; frontal (PA, the front at
the detector) and left lateral. What lies nearer to the source is drawn larger, by up to 15 % across the chest, which a
parallel beam would miss, and costs nothing: along the axis that the beam follows, a ray meets each slice of the phantom
at its pixel's place times a factor of that slice, so that a view is a sum of scaled slices. Pixels are measured in the
plane through the middle of the chest: a point of that plane is where its pixel says, others are off by the scale.

**Places.** Each view is a volume of one voxel along k in the coordinates of its own plane: x is the subject's right
(frontal) or front (lateral), y is the head's direction, z is along the ray and says nothing. So left and right of a
frontal view are those of the world, and shown as on a viewing station both views stand upright. The two views of a
study share one grid, and a place in one is no place in the other; the study's mask is of the first view.

**Values.** Hounsfield units become attenuation at 60 keV (water 0.2059 cm2/g, XCOM); photons are counted with the noise
of their number; the logarithm is shown from 0 (no tissue) to 4095 through a curve that differs from image to image, as
the processing of devices does, drawn from a stream that never sees the disease. No scatter, no hardening of the beam.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tomoglot.geometry import Grid
from tomoglot.studies.phantom.chest.cohort import CHEST, draw_chest
from tomoglot.studies.phantom.fields import Floats
from tomoglot.studies.phantom.simulated import SPLIT_FRACTIONS, PhantomStudy, stream
from tomoglot.studies.study import Volume

SIDE, PIXEL_MM, RAY_MM = 224, 1.5, 1.0
SOURCE_MM = 1800.0  # from source to detector
WATER_PER_MM = 0.02059
PHOTONS = 2.0e6  # on a pixel that nothing shades, at relative dose 1: some 1 % of noise behind the spine
NO_TISSUE = 0.1  # ray sums below this are shown black: half a centimetre of water
WHITE = 4095
LEAST_MM = 6.0  # of a finding on a ray that belongs to its shadow
# Findings that change their own shadow by less than 1.5 % of the image's range (measured against the same subject
# without them, docs/reference/simulated-radiographs.md), and fluid about the heart, which looks like a wide heart.
HARDLY_VISIBLE = (
    "arterial_wall_calcification", "coronary_artery_wall_calcification", "mosaic_attenuation_pattern",
    "bronchiectasis", "lymphadenopathy", "pericardial_effusion",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One projection: the axis the beam follows, the axis that runs across the image, and where the source stands.

    `source` is -1 where the beam runs towards the positive end of the axis; `gap_mm` lies between the middle of the
    chest and the detector.
    """

    along: int
    across: int
    source: float
    gap_mm: float

    @property
    def source_mm(self) -> float:
        """Place of the source on the axis that the beam follows."""
        return self.source * (SOURCE_MM - self.gap_mm)


VIEWS: Mapping[str, View] = {
    "cxr_frontal": View(along=1, across=0, source=-1.0, gap_mm=140.0),
    "cxr_lateral": View(along=0, across=1, source=1.0, gap_mm=175.0),
}


def image_grid() -> Grid:
    """The grid of every view: `SIDE` x `SIDE` x 1 voxels about the middle of the chest."""
    affine = np.diag([PIXEL_MM, PIXEL_MM, RAY_MM, 1.0])
    affine[:2, 3] = -PIXEL_MM * (SIDE - 1) / 2
    return Grid((SIDE, SIDE, 1), affine)


def project(values: NDArray[np.generic], grid: Grid, view: View, *, order: int = 1) -> Floats:
    """Sum of `values` times mm along the ray of each pixel, across x up; tissue goes on as it is beyond the grid."""
    steps, middles = grid.spacing_mm, grid.affine[:3, 3]
    slices = np.moveaxis(np.asarray(values, dtype=np.float32), view.along, 0)
    places = PIXEL_MM * (np.arange(SIDE) - (SIDE - 1) / 2)
    total = np.zeros((SIDE, SIDE), dtype=np.float32)
    for number, plane in enumerate(slices):
        if not plane.any():
            continue
        at = middles[view.along] + steps[view.along] * number
        scale = 1.0 - at / view.source_mm
        ratio = [scale * PIXEL_MM / steps[axis] for axis in (view.across, 2)]
        first = [(scale * places[0] - middles[axis]) / steps[axis] for axis in (view.across, 2)]
        total += ndimage.affine_transform(plane, ratio, first, (SIDE, SIDE), order=order, mode="nearest")
    # A ray aslant is longer in each slice.
    slant = np.sqrt(1.0 + (places[:, None] ** 2 + places[None, :] ** 2) / view.source_mm**2)
    return (total * steps[view.along] * slant).astype(np.float32)


def opened(grid: Grid, view: View) -> NDArray[np.bool_]:
    """Pixels that the collimator lets through: those over the phantom."""
    places = np.abs(PIXEL_MM * (np.arange(SIDE) - (SIDE - 1) / 2))
    half = [grid.shape[axis] * grid.spacing_mm[axis] / 2 for axis in (view.across, 2)]
    return np.asarray((places[:, None] <= half[0]) & (places[None, :] <= half[1]))


def attenuation(hu: Floats) -> Floats:
    """Linear attenuation per mm of Hounsfield units, which is what their scale says at one energy."""
    return np.maximum(0.0, WATER_PER_MM * (1.0 + hu / np.float32(1000.0))).astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposure:
    """How one image is taken and shown: photons a pixel, the share of the range that is white, the curve."""

    photons: float
    white: float
    gamma: float


def draw_exposure(rng: np.random.Generator, dose: float) -> Exposure:
    """One exposure of a study of that relative dose; it never sees the disease."""
    return Exposure(
        photons=round(PHOTONS * dose), white=round(float(rng.uniform(0.97, 1.1)), 3),
        gamma=round(float(rng.uniform(0.85, 1.15)), 3),
    )  # fmt: skip


def expose(sums: Floats, how: Exposure, rng: np.random.Generator, through: NDArray[np.bool_]) -> NDArray[np.int16]:
    """Ray sums as an image: counted photons, their logarithm, a window up to the densest rays, a curve."""
    counted = rng.poisson(how.photons * np.exp(-sums.astype(np.float64)))
    noisy = -np.log(np.maximum(counted, 1) / how.photons)
    shaded = through & (noisy > NO_TISSUE)
    top = how.white * float(np.percentile(noisy[shaded], 99))
    unit = np.clip((noisy - NO_TISSUE) / (top - NO_TISSUE), 0.0, 1.0) ** how.gamma
    # Black stands for no tissue alone.
    grey = np.where(shaded, np.maximum(np.rint(WHITE * unit), 1), 0)
    return grey.astype(np.int16)


def shadow(mask: NDArray[np.uint8], grid: Grid, view: View) -> NDArray[np.uint8]:
    """The mask as one view sees it; where shadows overlap, the smaller one owns the pixel.

    A pixel belongs to a finding of which its ray passes `LEAST_MM`, or half of the longest way through it where the
    finding is thin.
    """
    cast: dict[int, NDArray[np.bool_]] = {}
    through = opened(grid, view)
    for label in (int(value) for value in np.unique(mask) if value):
        ways = project(mask == label, grid, view)
        hit = through & (ways >= min(LEAST_MM, 0.5 * float(ways.max())))
        cast[label] = hit & (ways > 0)
    image = np.zeros((SIDE, SIDE), dtype=np.uint8)
    for label in sorted(cast, key=lambda one: (-int(cast[one].sum()), one)):
        image[cast[label]] = label
    return image


def generate(
    seed: int,
    index: int,
    *,
    spacing_mm: float = 2.0,
    only: str | None = None,
    split_fractions: Mapping[str, float] = SPLIT_FRACTIONS,
    skull_stripped: bool = True,
    motion_mm: float = 0.0,
    sequences: Sequence[str] | None = None,
) -> PhantomStudy:
    """Radiographs of the subject that `chest.cohort.generate` scans: a pure function of its arguments.

    Body, findings, labels and report are those of the CT of the same seed, index and spacing; only what the report
    calls the images differs. `sequences` are the views (None: both); the mask is of the first of them.
    `skull_stripped` and `motion_mm` have no meaning here. Raises ValueError as the CT does, and for an unknown view.
    """
    views = tuple(VIEWS if sequences is None else sequences)
    if not views or not set(views) <= set(VIEWS):
        raise ValueError(f"there is no sequence {', '.join(views) or '(none asked)'}; there are {', '.join(VIEWS)}")
    views = tuple(name for name in VIEWS if name in views)
    chest = draw_chest(
        seed, index, spacing_mm=spacing_mm, only=only, split_fractions=split_fractions, called="radiograph"
    )
    grid, affine = chest.scene.thorax.grid, image_grid().affine
    per_mm = attenuation(chest.scene.thorax.hu)
    volumes, taken = {}, {}
    for name in views:
        view, rng = VIEWS[name], stream(seed, index, f"chest {name}")
        how = draw_exposure(rng, chest.session.dose)
        image = expose(project(per_mm, grid, view), how, rng, opened(grid, view))
        volumes[name] = Volume(voxels=image[:, :, None], affine=affine)
        taken[name] = {"photons": how.photons, "white": how.white, "gamma": how.gamma, "source_mm": view.source_mm}
    also: dict[str, object] = {
        "acquisition": taken,
        "mask_of": views[0],
        "hardly_visible": [name for name in HARDLY_VISIBLE if chest.labels[name]],
    }
    return PhantomStudy(
        subject=chest.subject,
        study="ses-01x",  # the same person on the same day: never in another split than the CT
        split=chest.split,
        volumes=volumes,
        mask=Volume(voxels=shadow(chest.scene.mask, grid, VIEWS[views[0]])[:, :, None], affine=affine),
        report=chest.report,
        labels=chest.labels,
        truth=chest.truth | also,
    )


RADIOGRAPHS = replace(
    CHEST,
    name="radiographs",
    generate=generate,
    suffixes={"cxr_frontal": "frontal_cxr", "cxr_lateral": "lateral_cxr"},
    description="simulated chest radiograph (tomoglot phantom), not a person",
    windows=(),
)
