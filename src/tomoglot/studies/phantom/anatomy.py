"""One subject's anatomy: the template under an affine map, a smooth displacement, mass effect and volume loss.

Every map here pulls back: it takes a position in the subject to the position in the template that is seen there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from tomoglot.geometry import Grid
from tomoglot.studies.phantom.brain import SEPTUM_MM, VENTRICLES_MM, Template
from tomoglot.studies.phantom.fields import Floats, smooth_field

Points = NDArray[np.floating]


@dataclass(frozen=True, slots=True, kw_only=True)
class MassEffect:
    """Tissue pushed away from a place: template centre, radius of the mass, strength of the push in mm."""

    centre_mm: tuple[float, float, float]
    radius_mm: float
    push_mm: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Head:
    """Warped tissue fractions of one subject (float32, i j k) and where each voxel lies in the template."""

    grid: Grid
    gm: Floats
    wm: Floats
    csf: Floats
    ventricles: Floats
    near: NDArray[np.intp]
    near_mm: Floats
    template_mm: Floats  # n x 3, for the voxels of `near`
    midline_shift_mm: float  # positive to the right

    def subject_mm(self, template_mm: Sequence[float]) -> NDArray[np.float64]:
        """Where a template position lies in the subject, to the nearest voxel."""
        return nearest_mm(self.template_mm, self.near_mm, template_mm)

    def seen_mm(self, subject_mm: Sequence[float]) -> NDArray[np.float64]:
        """Template position seen at a subject position, to the nearest voxel."""
        return nearest_mm(self.near_mm, self.template_mm, subject_mm)


def nearest_mm(table: Floats, values: Floats, point_mm: Sequence[float]) -> NDArray[np.float64]:
    """The row of `values` at which `table` comes nearest to a point."""
    gap = table - np.asarray(point_mm, dtype=np.float32)
    return values[int(np.argmin(np.einsum("nd,nd->n", gap, gap)))].astype(np.float64)


def push_of(point_mm: Points, centre_mm: Points, effect: MassEffect) -> Points:
    """Displacement in mm (n x 3) that a mass gives tissue seen at `point_mm`, away from the centre.

    A Gaussian whose width grows with the mass; it vanishes at the centre and never folds (slope below one).
    """
    gap = point_mm - centre_mm
    distance = np.sqrt((gap**2).sum(axis=-1, keepdims=True))
    width = 22.0 + effect.radius_mm
    return effect.push_mm * gap / (distance + effect.radius_mm) * np.exp(-0.5 * (distance / width) ** 2)


def build_head(
    template: Template,
    rng: np.random.Generator,
    *,
    volume_loss: float = 0.0,
    effects: Sequence[MassEffect] = (),
) -> Head:
    """Warp the template to one subject.

    `volume_loss` from 0 (none) to 1 (severe) widens the ventricles about their middle and turns cortical rim to CSF.
    """
    points = template.near_mm
    middle = np.asarray(VENTRICLES_MM, dtype=np.float32)
    turn = Rotation.from_euler("xyz", rng.normal(0, 2.0, 3).clip(-4, 4), degrees=True).as_matrix()
    scale = 1.0 + rng.normal(0, 0.03, 3).clip(-0.06, 0.06)
    seen = (points - middle) @ (turn / scale).astype(np.float32) + middle
    for axis in range(3):
        field = smooth_field(rng, template.grid.shape, 6)
        seen[:, axis] += 2.5 * field.ravel()[template.near]
    plain = seen.copy()
    shift_mm = 0.0
    for effect in effects:
        centre = nearest_mm(plain, points, effect.centre_mm).astype(np.float32)
        seen -= push_of(points, centre, effect).astype(np.float32)
        shift_mm += septum_shift_mm(nearest_mm(plain, points, SEPTUM_MM), centre, effect)
    widen = rng.normal(0.0, 0.04) + 0.42 * volume_loss
    gap = seen - middle
    near_middle = np.exp(-0.5 * ((gap / np.array([26, 44, 26], dtype=np.float32)) ** 2).sum(axis=1, keepdims=True))
    seen = middle + gap * (1.0 - widen * near_middle)
    return sample(template, seen.astype(np.float32), volume_loss, shift_mm)


def septum_shift_mm(septum_mm: Points, centre_mm: Points, effect: MassEffect) -> float:
    """How far the septum moves along x: the fixed point of p = septum + push(p)."""
    place = septum_mm.copy()
    for _ in range(20):
        place = septum_mm + push_of(place[None], centre_mm, effect)[0]
    return float(place[0] - septum_mm[0])


def sample(template: Template, seen: Floats, volume_loss: float, shift_mm: float) -> Head:
    """Read the template's maps at pulled-back positions and close the tissue sum with CSF."""
    grid = template.grid
    index = (seen - grid.affine[:3, 3].astype(np.float32)).T / np.float32(grid.spacing_mm[0])

    def read(source: Floats) -> Floats:
        full = np.zeros(source.size, dtype=np.float32)
        full[template.near] = ndimage.map_coordinates(source, index, order=1, mode="constant", prefilter=False)
        return full.reshape(source.shape)

    gm, wm, brain = read(template.gm), read(template.wm), read(template.brain)
    if volume_loss > 0:
        gm = gm * (1.0 - np.clip(1.3 * volume_loss * read(template.rim), 0, 0.95))
    return Head(
        grid=grid,
        gm=gm,
        wm=wm,
        csf=np.maximum(brain - gm - wm, 0.0),
        ventricles=read(template.ventricles),
        near=template.near,
        near_mm=template.near_mm,
        template_mm=seen,
        midline_shift_mm=shift_mm,
    )
