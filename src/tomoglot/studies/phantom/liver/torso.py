"""One subject's abdomen: smooth parametric shapes under a smooth displacement, as tissue fractions on a grid.

Positions are millimetres in RAS+ about the middle of the body at the level of the liver's gate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tomoglot.geometry import Grid, centred_grid
from tomoglot.studies.phantom.drawing import Crop
from tomoglot.studies.phantom.fields import Floats
from tomoglot.studies.phantom.shapes import WHOLE, Place, Shapes, draw_seen, joined, ring

BOX_MM = (336.0, 240.0, 192.0)
CAVA_MM = (24.0, -12.0)  # where the inferior vena cava passes the liver: the planes between segments meet here


def field_of_view(spacing_mm: float) -> Grid:
    """The cohort's RAS+ grid: 336 x 240 x 192 mm, 84 x 60 x 48 voxels at 4 mm."""
    if not 1.0 <= spacing_mm <= 8.0:
        raise ValueError(f"spacing_mm is {spacing_mm}; the simulated liver is made at 1 to 8 mm")
    i, j, k = (round(extent / spacing_mm) for extent in BOX_MM)
    return centred_grid(np.zeros(3), np.eye(3), (i, j, k), (spacing_mm,) * 3)


@dataclass(slots=True, eq=False)
class Torso(Shapes):
    """Tissue fractions by name (i j k)."""

    fractions: dict[str, Floats]
    liver: Floats  # the liver with its vessels, 0 to 1
    mobile: Floats  # 1 where tissue moves with the diaphragm, 0 at spine and wall

    def total(self, crop: Crop = WHOLE) -> Floats:
        """Share of each voxel inside the body."""
        inside = np.zeros_like(self.seen[0][crop])
        for part in self.fractions.values():
            inside += part[crop]
        return inside

    def paint(self, crop: Crop, tissue: str, share: Floats) -> None:
        """Replace a share (0 to 1) of what is in the crop by a tissue. Outside the body nothing is replaced."""
        inside = self.total(crop)
        for part in self.fractions.values():
            part[crop] *= 1.0 - share
        if tissue not in self.fractions:
            self.fractions[tissue] = np.zeros(self.grid.shape, dtype=np.float32)
        self.fractions[tissue][crop] += share * inside


def build_torso(grid: Grid, rng: np.random.Generator) -> Torso:
    """The abdomen of one subject, without lesions."""
    seen = draw_seen(grid, rng)
    fat_mm = float(rng.uniform(8, 24))
    body = ring(seen, (0, 0), (150, 105))
    empty = np.zeros(grid.shape, dtype=np.float32)
    torso = Torso(grid, seen, {}, empty, empty)
    torso.fractions["fat"] = torso.solid(body)
    torso.paint(WHOLE, "muscle", torso.solid(ring(seen, (0, 0), (150 - fat_mm, 105 - 0.8 * fat_mm))))
    cavity = ring(seen, (0, 8), (137 - fat_mm, 84 - 0.7 * fat_mm))
    torso.paint(WHOLE, "fat", torso.solid(cavity))
    torso.mobile = np.clip(-cavity / 14.0, 0, 1) * np.clip((seen[1] + 72.0) / 36.0, 0, 1)
    dome = diaphragm_mm(seen)
    torso.paint(WHOLE, "lung", torso.solid(np.maximum(cavity, dome - seen[2])))
    put_spine(torso, rng)
    put_organs(torso, rng)
    put_liver(torso, rng, np.maximum(cavity + 2.0, seen[2] - dome + 2.5))
    return torso


def diaphragm_mm(seen: Floats) -> Floats:
    """Height of the diaphragm: a dome on each side, low towards the back."""
    x, y = seen[0], seen[1]
    right = 84.0 - 26.0 * ((x - 58.0) / 62.0) ** 2
    left = 76.0 - 26.0 * ((x + 62.0) / 58.0) ** 2
    return np.maximum(right, left) - 44.0 * ((y - 8.0) / 76.0) ** 2


def put_spine(torso: Torso, rng: np.random.Generator) -> None:
    """Vertebrae and discs, arches, the fluid about the cord, the long muscles of the back and the crura."""
    period, phase = float(rng.uniform(32, 38)), float(rng.uniform(0, 36))
    crop = torso.around((-30, -100, -120), (30, -30, 120))
    seen = torso.seen[(slice(None), *crop)]
    for side in (-1.0, 1.0):
        torso.put("muscle", (side * 38, -78, 0), (27, 19, 900))
    pillar = ring(seen, (0, -52), (22, 17))
    torso.paint(crop, "marrow", torso.solid(pillar))
    height = np.abs((seen[2] + phase) % period - period / 2)
    torso.paint(crop, "disc", torso.solid(np.maximum(pillar, height - 4.0)))
    torso.paint(crop, "marrow", torso.solid(ring(seen, (0, -80), (13, 11))))
    torso.paint(crop, "csf", torso.solid(ring(seen, (0, -78), (8, 7))))
    torso.put("muscle", (0, -78, 0), (4, 4, 900))


def put_organs(torso: Torso, rng: np.random.Generator) -> None:
    """Spleen, kidneys, stomach, bowel, pancreas, heart, and the great vessels."""

    def about(*place: float) -> tuple[float, ...]:
        return tuple(p + float(d) for p, d in zip(place, rng.normal(0, 3.0, 3).clip(-6, 6), strict=True))

    def large(*radii: float) -> tuple[float, ...]:
        return tuple(r * float(s) for r, s in zip(radii, np.exp(rng.normal(0, 0.07, 3).clip(-0.14, 0.14)), strict=True))

    torso.put("muscle", (-22, 30, 104), (58, 48, 36))  # heart, then the blood in it
    torso.put("aorta", (-24, 30, 108), (40, 34, 28))
    for place in ((-78, 34, -58), (-30, 58, -74), (40, 60, -80), (88, 40, -84), (0, 30, -86)):  # colon and small bowel
        centre, radii = about(*place), large(25, 18, 19)
        torso.put("gut", centre, radii)
        torso.put("gas" if rng.random() < 0.35 else "fluid", centre, [0.7 * r for r in radii])
    for side, z in ((1.0, -58.0), (-1.0, -42.0)):
        put_kidney(torso, about(side * 58.0, -44.0, z), large(27, 24, 50))
    torso.put("spleen", about(-96, -32, 22), large(25, 42, 46))
    stomach, radii = about(-58, 34, 30), large(40, 34, 42)
    torso.put("gut", stomach, radii)
    torso.put("meal", stomach, [0.88 * r for r in radii])
    bubble = np.asarray(radii) * (0.6, 0.3, 0.6)  # gas rises to the front of someone who lies on the back
    torso.put("gas", np.add(stomach, (0.0, 0.5 * radii[1], 0.0)), bubble)
    torso.tube("pancreas", (about(36, 10, -34), (6, 20, -24), (-34, 2, -12), about(-72, -16, 0)), 12, 8)
    torso.tube("aorta", ((-12, -26, -130), (-11, -24, 0), (-9, -28, 130)), 10.5, 11.5)
    torso.tube("aorta", ((-10, -20, -8), (-6, -2, -4), (14, 8, -8)), 4.5, 3.0)  # coeliac trunk, hepatic artery
    torso.tube("aorta", ((-8, -4, -4), (-50, -14, 8), (-76, -24, 16)), 3.5, 3.0)  # splenic artery
    torso.tube("veins", ((24, -22, -130), (25, -18, -40)), 11.0, 11.0)


def put_kidney(torso: Torso, centre: Place, radii: Place) -> None:
    """Cortex, pyramids as a ball of balls, and the fat of the sinus towards the middle of the body."""
    torso.put("cortex", centre, radii)
    crop, gap = torso.ellipsoid(centre, [0.72 * r for r in radii])
    seen = torso.seen[(slice(None), *crop)]
    columns = np.cos(seen[2] * (2 * np.pi / 15.0)) * np.cos((seen[0] + seen[1]) * (2 * np.pi / 22.0))
    torso.paint(crop, "medulla", torso.solid(gap) * np.clip(0.65 + 0.9 * columns, 0, 1))
    sinus = np.add(centre, (-np.sign(centre[0]) * 0.35 * radii[0], 0.0, 0.0))
    torso.put("fat", sinus, np.asarray(radii) * (0.42, 0.3, 0.45))


def put_liver(torso: Torso, rng: np.random.Generator, limit: Floats) -> None:
    """The liver below the diaphragm and inside the wall, its gate and gall bladder, portal and hepatic veins."""
    size = 1.0 + float(rng.normal(0, 0.05))
    left = 1.0 + float(np.clip(rng.normal(0, 0.12), -0.2, 0.25))
    shape = torso.ellipsoid((70, -4, 6), (64 * size, 82 * size, 84 * size), WHOLE)[1]
    shape = joined(shape, torso.ellipsoid((16, 30, 32), (78 * left, 44, 36 * left), WHOLE)[1], 14.0)
    shape = joined(shape, torso.ellipsoid((20, -2, 22), (19, 20, 27), WHOLE)[1])
    # Hollows at the gate, over the right kidney, and beside the spine.
    for place, half in (((22, 16, -58), (46, 62, 50)), ((52, -50, -62), (32, 30, 54)), ((-6, -52, 0), (34, 34, 900))):
        shape = np.maximum(shape, -torso.ellipsoid(place, half, WHOLE)[1])
    shape = np.maximum(np.maximum(shape, limit), -torso.seen[0] - 78.0)
    torso.liver = torso.solid(shape)
    torso.paint(WHOLE, "liver", torso.liver)
    bladder = np.exp(rng.normal(0, 0.15, 3).clip(-0.25, 0.25)) * np.array([13.0, 15.0, 25.0])
    torso.put("bile", (46, 36, -38), bladder)
    x, y = CAVA_MM
    torso.tube("veins", ((25, -18, -40), (x, y - 4, 10), (x, y, 60), (14, -4, 100)), 11.0, 12.5)
    bends = rng.normal(0, 5.0, (6, 3)).clip(-9, 9)
    courses = ((72, -20, 42), (112, -24, 8)), ((38, 18, 40), (52, 46, 10)), ((6, 18, 46), (-30, 34, 34))
    for ends, bend in zip(courses, bends[:3], strict=True):
        first, last = (np.asarray(end) + bend for end in ends)
        torso.tube("veins", ((x + 2, y + 6, 62), first, last), 5.5, 2.2)
    torso.tube("portal", ((-6, 2, -40), (14, 4, -14), (34, 6, 4)), 7.0, 6.5)
    branches = ((34, 6, 4), (70, 0, 8)), ((34, 6, 4), (12, 26, 16), (4, 40, 28))
    for number, branch in enumerate(branches):
        torso.tube("portal", branch, 5.5, 4.5)
        for turn in (-1.0, 1.0):
            end = np.asarray(branch[-1], dtype=float)
            tip = end + np.array([34.0, 14.0 * turn, 26.0 * turn]) * (1 if number == 0 else -0.7) + bends[3 + number]
            torso.tube("portal", (end, tip), 3.8, 2.0)
    torso.liver = torso.liver * np.clip(1.0 - torso.fractions["bile"], 0, 1)


def room_mm(torso: Torso) -> Floats:
    """Distance in mm of each liver voxel from the liver's surface and from its large vessels."""
    solid = (torso.fractions["liver"] > 0.6) | ((torso.liver > 0.9) & (torso.fractions["veins"] < 0.3))
    return ndimage.distance_transform_edt(solid, sampling=torso.grid.spacing_mm).astype(np.float32)


def segment_of(seen_mm: NDArray[np.floating]) -> NDArray[np.str_]:
    """Couinaud segment of template positions (n x 3): planes through the vena cava, and the portal vein's level."""
    x, y, z = seen_mm[:, 0] - CAVA_MM[0], seen_mm[:, 1] - CAVA_MM[1], seen_mm[:, 2]
    right = x > 0.40 * y  # the plane of the gall bladder and the middle hepatic vein
    behind = y < 0.05 * x
    caudate = (((x + 4) / 21) ** 2 + ((y - 10) / 19) ** 2 + ((z - 22) / 29) ** 2 < 1.0) & (y < 14)
    lateral = seen_mm[:, 0] < 2.0
    upper = z > 8.0
    rules = (
        (caudate, "I"),
        (right & behind & upper, "VII"),
        (right & behind, "VI"),
        (right & upper, "VIII"),
        (right, "V"),
        (lateral & (z > 34.0), "II"),
        (lateral, "III"),
    )
    conditions, names = zip(*rules, strict=True)
    return np.select(conditions, names, default="IV")
