"""One subject's thorax in Hounsfield units: chest wall, lungs with lobes, mediastinum, upper abdomen.

Positions are millimetres in RAS+ about the middle of the chest, some 35 mm below the carina. What is painted later
lies on top; every organ that is painted over lung takes its share away from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tomoglot.geometry import Grid, centred_grid
from tomoglot.studies.phantom.chest.tissue import AIR_HU
from tomoglot.studies.phantom.drawing import Crop
from tomoglot.studies.phantom.fields import Floats, smooth_field
from tomoglot.studies.phantom.shapes import WHOLE, Place, Shapes, draw_seen, joined, ring

BOX_MM = (320.0, 256.0, 256.0)
LOBES = ("right upper", "right middle", "right lower", "left upper", "left lower")
CAGE_MM = (126.0, 88.0)  # half the inner width and depth of the rib cage, where it is widest
DOMES_MM = (-70.0, -77.0)  # height of the right and left dome of the diaphragm in full inspiration
TRACHEA_MM = ((1, 0, 140), (2, -8, 60), (3, -10, 34))
BRONCHI_MM = (((3, -10, 34), (24, -13, 16), (42, -14, 4)), ((3, -10, 34), (-22, -14, 18), (-46, -16, 6)))
AORTA_MM = (
    (2, 16, -8), (14, 26, 22), (12, 30, 46), (-8, 22, 62), (-24, -2, 58), (-27, -26, 42), (-27, -42, 10),
    (-20, -44, -50), (-8, -46, -140),
)  # fmt: skip

ARCH_MM: tuple[tuple[Place, ...], ...] = (
    ((-4, 22, 62), (14, 6, 98), (26, 8, 140)), ((-12, 16, 64), (-18, 2, 140)), ((-22, 2, 62), (-32, -8, 140)),
)  # fmt: skip


def field_of_view(spacing_mm: float) -> Grid:
    """The cohort's RAS+ grid: 320 x 256 x 256 mm, 80 x 64 x 64 voxels at 4 mm. Raises ValueError outside 1 to 8 mm."""
    if not 1.0 <= spacing_mm <= 8.0:
        raise ValueError(f"spacing_mm is {spacing_mm}; the simulated chest is made at 1 to 8 mm")
    i, j, k = (round(extent / spacing_mm) for extent in BOX_MM)
    return centred_grid(np.zeros(3), np.eye(3), (i, j, k), (spacing_mm,) * 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """What of a thorax disease may change, and how deep the breath was (0 full, 1 out)."""

    ratio: float = 0.45  # widest heart by widest inner chest
    effusion_mm: float = 0.0  # fluid in the pericardium
    breath: float = 0.0


@dataclass(slots=True, eq=False)
class Thorax(Shapes):
    """Hounsfield units, and the maps that findings are placed by (all i j k)."""

    table: dict[str, float]
    hu: Floats
    lung: Floats  # share of lung, with the airways and vessels in it
    cage: Floats  # mm to the inner chest wall, negative inside
    dome: Floats  # mm that a voxel lies above the diaphragm
    lobe: NDArray[np.uint8]  # place in LOBES counted from 1, 0 outside the lungs' half
    body: Floats
    heart: Floats  # mm to the surface of the heart's muscle
    sac: Floats  # share of fluid in the pericardium
    central_air: Floats  # share of trachea and main bronchi
    ratio: float = 0.0  # cardiothoracic ratio, as drawn

    def paint(self, crop: Crop, tissue: str, share: Floats) -> None:
        """Replace a share of what is in the crop, lung as well."""
        part = self.hu[crop]
        part += share * (np.float32(self.table[tissue]) - part)
        self.lung[crop] *= 1.0 - share

    def fill(self, crop: Crop, tissue: str, share: Floats) -> Floats:
        """Paint into lung only, which stays lung; returns the share that was painted."""
        share = (share * self.lung[crop]).astype(np.float32)
        part = self.hu[crop]
        part += share * (np.float32(self.table[tissue]) - part)
        return share

    def where(self, points: Place | Sequence[Place]) -> NDArray[np.float64]:
        """World positions (n x 3) at which template positions are seen."""
        wanted = np.atleast_2d(np.asarray(points, dtype=np.float64))
        found = wanted.copy()
        for _ in range(6):
            voxels = (found - self.grid.affine[:3, 3]) / np.asarray(self.grid.spacing_mm)
            seen = [ndimage.map_coordinates(axis, voxels.T, order=1, mode="nearest") for axis in self.seen]
            found += wanted - np.stack(seen, axis=1)
        return found


def slab_half(z: Floats, full: float, middle: float, reach: float) -> Floats:
    """Half a width that shrinks like an ellipse above `middle`, to nothing at `middle` + `reach`."""
    rise = np.clip((z - np.float32(middle)) / np.float32(reach), 0, 0.9995)
    return np.float32(full) * np.sqrt(1.0 - rise**2)


def cage_centre(z: Floats) -> Floats:
    """How far forward the middle of the rib cage lies: the top leans back."""
    return np.float32(-18.0) * np.clip((z - 20.0) / 95.0, 0, 1)


def oval(x: Floats, y: Floats, half: tuple[Floats, Floats], power: float) -> Floats:
    """Distance in mm to a rounded outline whose half-widths change with height, measured towards its axis."""
    level = (np.abs(x / half[0]) ** power + np.abs(y / half[1]) ** power) ** np.float32(1 / power)
    return np.hypot(x, y) * (1.0 - 1.0 / np.maximum(level, 1e-3))


def diaphragm_mm(seen: Floats, breath: float) -> Floats:
    """Height of the diaphragm: a dome on each side and the tendon under the heart, low towards back and sides."""
    x, y = seen[0], seen[1]
    right = DOMES_MM[0] - 34.0 * ((x - 62.0) / 62.0) ** 2
    left = DOMES_MM[1] - 34.0 * ((x + 62.0) / 62.0) ** 2
    tendon = -83.0 - 30.0 * (x / 45.0) ** 2
    behind = np.where(y < 12.0, 36.0 * ((y - 12.0) / 80.0) ** 2, 24.0 * ((y - 12.0) / 80.0) ** 2)
    return np.maximum(np.maximum(right, left), tendon) - behind + np.float32(26.0 * breath)


def lobes_of(seen: Floats) -> NDArray[np.uint8]:
    """Number of the lobe on whose side of the fissures a template position lies."""
    above = seen[2] > oblique_mm(seen)
    right = np.where(above, np.where(seen[2] > horizontal_mm(seen), 1, 2), 3)
    return np.where(seen[0] > 0, right, np.where(above, 4, 5)).astype(np.uint8)


def oblique_mm(seen: Floats) -> Floats:
    """Height of the oblique fissure: high at the back, at the diaphragm in front."""
    return np.float32(46.0) - np.float32(0.95) * (seen[1] + 80.0)


def horizontal_mm(seen: Floats) -> Floats:
    """Height of the horizontal fissure of the right lung."""
    return np.float32(2.0) - np.float32(0.12) * seen[1]


def build_thorax(grid: Grid, rng: np.random.Generator, table: dict[str, float], build: Build) -> Thorax:
    """The thorax of one subject, without vessels and airways in the lungs."""
    seen = draw_seen(grid, rng)
    female, fat_mm = bool(rng.random() < 0.5), float(rng.uniform(6, 24))
    x, y, z = seen
    lean = y - cage_centre(z)
    cage = oval(x, lean, (slab_half(z, CAGE_MM[0], -40, 156), slab_half(z, CAGE_MM[1], -60, 176)), 2.3)
    dome = z - diaphragm_mm(seen, build.breath)
    empty = np.zeros(grid.shape, dtype=np.float32)
    thorax = Thorax(
        grid, seen, table, np.full(grid.shape, AIR_HU, dtype=np.float32), empty.copy(), cage, dome,
        lobes_of(seen), empty, empty, empty.copy(), empty.copy(),
    )  # fmt: skip
    put_wall(thorax, rng, fat_mm, female)
    put_lungs(thorax, rng, build.breath)
    put_abdomen(thorax, rng)
    put_bones(thorax, rng)
    put_heart(thorax, rng, build)
    put_vessels(thorax)
    # Shoulder blades and clavicles of a narrow body would reach out of it.
    thorax.hu[thorax.body < 0.02] = AIR_HU
    return thorax


def front_mm(z: Floats) -> Floats:
    """How far forward the ribs reach at a height."""
    return slab_half(z, CAGE_MM[1], -60, 176) + cage_centre(z)


def put_wall(thorax: Thorax, rng: np.random.Generator, fat_mm: float, female: bool) -> None:
    """Skin, fat, muscle, and breasts of a woman; inside the ribs the fat that mediastinum and organs are laid in."""
    x, y, z = thorax.seen
    front, back = (np.maximum(front_mm(z), 16.0) + 15.0).astype(np.float32), np.float32(98.0)

    def outline(more_mm: float) -> Floats:
        half = ((front + back) / 2 + 0.8 * more_mm).astype(np.float32)
        wide = np.full_like(half, 141.0 + more_mm)
        return oval(x, y - (front - back) / 2, (wide, half), 2.5)

    skin = outline(fat_mm)
    if female:
        size = float(rng.uniform(0.8, 1.15))
        for side in (-1.0, 1.0):
            breast = thorax.ellipsoid((side * 66, 88 + 0.6 * fat_mm, -18), (52 * size, 30 * size, 46 * size), WHOLE)[1]
            skin = joined(skin, breast, 8.0)
    thorax.body = thorax.solid(skin)
    thorax.paint(WHOLE, "skin", thorax.body)
    thorax.paint(WHOLE, "fat", thorax.solid(skin + 2.0))
    if female:
        for side in (-1.0, 1.0):
            centre = (side * 66, 92 + 0.5 * fat_mm, -18)
            crop, gap = thorax.ellipsoid(centre, (26, 15, 24))
            thorax.paint(crop, "gland", 0.7 * thorax.solid(gap))
    thorax.paint(WHOLE, "muscle", thorax.solid(outline(0.0)))
    between = np.abs(thorax.cage - 15.0) - 1.6  # fat between the layers of the chest wall
    thorax.paint(WHOLE, "fat", 0.8 * thorax.solid(np.maximum(between, outline(-5.0))))
    thorax.paint(WHOLE, "fat", thorax.solid(thorax.cage))


def put_lungs(thorax: Thorax, rng: np.random.Generator, breath: float) -> None:
    """Both lungs, denser towards the back and with less air, and their fissures."""
    x, y, z = thorax.seen
    high = np.clip(z / 30.0, 0, 1)
    middle = oval(x + 2.0, y - (35.0 * high - 30.0), (np.full_like(z, 27.0), 32.0 + 16.0 * high), 2.0)
    gap = np.maximum(np.maximum(thorax.cage + 2.0, -thorax.dome), -middle)
    thorax.lung = thorax.solid(gap)
    behind = np.clip((40.0 - y) / 120.0, 0, 1)
    hu = -872.0 + 34.0 * behind + breath * (75.0 + 70.0 * behind) + 9.0 * smooth_field(rng, thorax.grid.shape, 7)
    hu += 8.0 * float(rng.standard_normal())
    thorax.hu += thorax.lung * (hu.astype(np.float32) - thorax.hu)
    oblique = np.abs(z - oblique_mm(thorax.seen)) / 1.38
    horizontal = np.where((x > 0) & (z > oblique_mm(thorax.seen)), np.abs(z - horizontal_mm(thorax.seen)), 99.0)
    sheet = thorax.solid(np.minimum(oblique, horizontal).astype(np.float32) - 0.35)
    thorax.fill(WHOLE, "septum", sheet * np.float32(min(1.0, 1.2 / thorax.grid.spacing_mm[0])))


def put_abdomen(thorax: Thorax, rng: np.random.Generator) -> None:
    """Below the diaphragm: liver, spleen, stomach with its gas in front."""
    x, _, z = thorax.seen
    inside = np.maximum(thorax.cage + 3.0, thorax.dome)
    below = thorax.solid(inside)
    thorax.paint(WHOLE, "muscle", below * thorax.solid(np.abs(thorax.dome + 1.5) - 1.5))
    left = float(rng.uniform(-60, -30))
    liver = np.maximum(inside + 3.0, (left - x) + np.maximum(-z - 90.0, 0) * 0.6)
    thorax.paint(WHOLE, "liver", thorax.solid(liver))
    jitter = rng.normal(0, 4.0, (2, 3)).clip(-8, 8)
    stomach, spleen = np.array([-62, 26, -112]) + jitter[0], np.array([-92, -38, -110]) + jitter[1]
    crop, gap = thorax.ellipsoid(spleen, (30, 44, 38))
    thorax.paint(crop, "spleen", thorax.solid(np.maximum(gap, inside[crop] + 3.0)))
    crop, gap = thorax.ellipsoid(stomach, (42, 40, 36))
    gap = np.maximum(gap, inside[crop] + 4.0)
    thorax.paint(crop, "gut", thorax.solid(gap))
    thorax.paint(crop, "meal", thorax.solid(gap + 4.0))
    level = float(rng.uniform(30, 50)) - thorax.seen[1][crop]
    thorax.paint(crop, "air", thorax.solid(np.maximum(gap + 4.0, level)))


def put_bones(thorax: Thorax, rng: np.random.Generator) -> None:
    """Spine with cord and discs, ribs that run down and forward into cartilage, sternum, shoulder blades, clavicles."""
    x, y, z = thorax.seen
    period, phase = float(rng.uniform(23, 27)), float(rng.uniform(0, 24))
    bend = np.float32(9.0) * (z / 120.0) ** 2  # the chest's spine is bent backwards
    crop = thorax.around((-48, -128, -140), (48, -20, 140))
    straight = np.stack([x[crop], y[crop] - bend[crop], z[crop]])
    for side in (-1.0, 1.0):
        thorax.paint(crop, "muscle", thorax.solid(ring(straight, (side * 27, -96), (24, 14))))
        thorax.paint(crop, "cortex", 0.5 * thorax.solid(ring(straight, (side * 20, -80), (13, 5))))
    pillar = ring(straight, (0, -64), (17, 15))
    thorax.paint(crop, "cortex", thorax.solid(pillar))
    thorax.paint(crop, "marrow", thorax.solid(pillar + 1.6))
    height = np.abs((z[crop] + phase) % period - period / 2)
    thorax.paint(crop, "disc", thorax.solid(np.maximum(pillar, height - 2.2)))
    thorax.paint(crop, "cortex", 0.7 * thorax.solid(ring(straight, (0, -84), (12, 10))))
    thorax.paint(crop, "cord", thorax.solid(ring(straight, (0, -82), (8, 7))))
    thorax.paint(crop, "cortex", 0.6 * thorax.solid(ring(straight, (0, -102), (3.5, 9))))
    turn = np.arctan2(np.abs(x), -(y - cage_centre(z)))  # 0 at the spine, pi at the sternum
    course = (z + phase + 31.0 * (1.0 - np.cos(turn))) % 25.0
    rib: Floats = np.maximum(np.abs(thorax.cage - 6.5) - 3.8, np.abs(course - 12.5) - 5.5)
    soft = np.clip((turn - 2.55) / 0.1, 0, 1).astype(np.float32)
    thorax.paint(WHOLE, "cartilage", thorax.solid(rib) * soft)
    thorax.paint(WHOLE, "cortex", thorax.solid(rib) * (1.0 - soft))
    thorax.paint(WHOLE, "marrow", thorax.solid(rib + np.float32(2.0)) * (1.0 - soft))
    plate = np.maximum(np.abs(thorax.cage - 7.0) - 5.0, np.maximum(np.abs(x) - 17.0, np.maximum(z - 84.0, -38.0 - z)))
    sternum = np.where(y > 0, plate, np.float32(99.0)).astype(np.float32)
    thorax.paint(WHOLE, "cortex", thorax.solid(sternum))
    thorax.paint(WHOLE, "marrow", thorax.solid(sternum + 1.8))
    for side in (-1.0, 1.0):
        angle = np.deg2rad(42.0) * side
        blade = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1.0]])
        place, gap = thorax.ellipsoid((side * 104, -66, 40), (4.5, 36, 58), turn=blade)
        thorax.paint(place, "cortex", 0.75 * thorax.solid(gap))
        points = ((side * 16, 46, 88), (side * 70, 34, 108), (side * 138, -16, 116))
        thorax.tube("cortex", points, 6.0, 6.5)
        thorax.tube("marrow", points, 3.4, 3.8)


def heart_axes(ratio: float) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Centre, radii and directions (rows; the first points to the apex) of a heart that wide by the chest."""
    first = np.array([-0.70, 0.48, -0.53])
    first /= np.linalg.norm(first)
    second = np.array([0.45, 0.88, 0.2])
    second -= first * (first @ second)
    second /= np.linalg.norm(second)
    axes = np.stack([first, second, np.cross(first, second)])
    radii = np.array([60.0, 45.0, 46.0])
    width = 2 * np.sqrt(((axes[:, 0] * radii) ** 2).sum())
    wanted = ratio * 2 * CAGE_MM[0]
    # Wider hearts grow along their axis more than across it, or they would touch spine and sternum.
    radii = radii * (wanted / width) ** np.array([1.15, 0.85, 0.85])
    radii *= wanted / (2 * np.sqrt(((axes[:, 0] * radii) ** 2).sum()))
    return np.array([-14.0 - 40.0 * (ratio - 0.45), 20.0, -34.0]), radii, axes


def put_heart(thorax: Thorax, rng: np.random.Generator, build: Build) -> None:
    """Pericardium, fluid in it, fat about the heart, the heart, and the left atrium behind it."""
    centre, radii, axes = heart_axes(build.ratio)
    gap = thorax.ellipsoid(centre, radii, WHOLE, turn=axes)[1]
    gap = joined(gap, thorax.ellipsoid((0, -8, -4), (32, 18, 22), WHOLE)[1], 8.0)
    limit = np.maximum(thorax.cage + 3.0, 2.0 - thorax.dome)
    fat_mm = float(rng.uniform(3.5, 7.0))
    behind = np.clip(0.75 - (thorax.seen[1] - centre[1]) / 110.0 - (thorax.seen[2] - centre[2]) / 300.0, 0.35, 1.3)
    fluid_mm = (build.effusion_mm * behind).astype(np.float32)
    thorax.heart = np.maximum(gap, limit)
    thorax.paint(WHOLE, "muscle", thorax.solid(np.maximum(gap - fat_mm - fluid_mm - 1.5, limit)))
    whole = thorax.solid(np.maximum(gap - fat_mm - fluid_mm, limit))
    inner = thorax.solid(np.maximum(gap - fat_mm, limit))
    if build.effusion_mm > 0:
        thorax.paint(WHOLE, "effusion", whole)
        thorax.sac = np.clip(whole - inner, 0, 1)
    thorax.paint(WHOLE, "fat", inner)
    thorax.paint(WHOLE, "heart", thorax.solid(thorax.heart))
    thorax.ratio = ratio_of(thorax)


def ratio_of(thorax: Thorax) -> float:
    """Cardiothoracic ratio as read from slices: widest heart by widest inner chest, each in its own slice."""

    def widest(inside: NDArray[np.bool_]) -> int:
        across = np.asarray(inside.any(axis=1))  # i k
        first, last = across.argmax(axis=0), across.shape[0] - across[::-1].argmax(axis=0)
        return int(np.where(across.any(axis=0), last - first, 0).max())

    return widest(thorax.heart < 0) / max(1, widest((thorax.cage < 0) & (thorax.lung > 0.5)))


def put_vessels(thorax: Thorax) -> None:
    """Great vessels, gullet, trachea and main bronchi."""
    thorax.tube("blood", ((24, 16, 80), (26, 12, 0)), 9.0, 9.5)  # upper vena cava
    thorax.tube("blood", ((24, 16, 80), (42, 12, 112)), 7.0, 6.5)
    thorax.tube("blood", ((24, 18, 78), (-30, 30, 92), (-46, 22, 112)), 6.5, 6.0)
    thorax.tube("blood", ((22, -12, -44), (24, -10, -140)), 11.0, 11.0)  # lower vena cava
    thorax.tube("blood", AORTA_MM, 15.5, 11.0)
    for branch in ARCH_MM:
        thorax.tube("blood", branch, 5.5, 4.5)
    thorax.tube("blood", ((-20, 44, -8), (-25, 36, 16), (-22, 16, 28), (-50, -12, 22)), 13.5, 8.5)  # pulmonary trunk
    thorax.tube("blood", ((-20, 20, 22), (8, 10, 18), (48, -2, 10)), 11.0, 8.0)
    thorax.tube("muscle", ((-2, -26, 140), (-6, -28, 30), (-6, -30, -40), (-16, -18, -96)), 7.0, 8.0)  # gullet
    for number, course in enumerate((TRACHEA_MM, *BRONCHI_MM)):
        wide, narrow = (9.0, 8.6) if number == 0 else (7.2, 5.0)
        thorax.tube("airway_wall", course, wide + 1.6, narrow + 1.3)
        before = thorax.hu.copy()
        thorax.tube("air", course, wide, narrow)
        thorax.central_air = np.maximum(thorax.central_air, np.clip((before - thorax.hu) / 1000.0, 0, 1))
