"""Findings of lungs and pleura. Each function draws one finding of a subject with a generator of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree
from scipy.spatial.transform import Rotation

from tomoglot.geometry import to_world
from tomoglot.studies.phantom.chest.scene import Part, Scene
from tomoglot.studies.phantom.chest.trees import splat_tubes
from tomoglot.studies.phantom.drawing import blob, crop_about, soft
from tomoglot.studies.phantom.fields import Floats, smooth_field
from tomoglot.studies.phantom.shapes import WHOLE


def rising(values: Floats, low: float, high: float) -> Floats:
    """0 below `low`, 1 above `high`, smooth between."""
    part = np.clip((values - np.float32(low)) / np.float32(high - low), 0, 1)
    return part * part * (3.0 - 2.0 * part)


def draw_sides(rng: np.random.Generator, both: float) -> tuple[int, ...]:
    """Right (1), left (-1), or with probability `both` both."""
    one = (1,) if rng.random() < 0.54 else (-1,)
    return (1, -1) if rng.random() < both else one


def half(scene: Scene, side: int) -> NDArray[np.bool_]:
    """Voxels of one side of the body."""
    return scene.thorax.seen[0] * side > 0


def pleural_effusion(scene: Scene, rng: np.random.Generator) -> None:
    """Fluid that has run to the back of someone who lies on it: a crescent, deepest at the base."""
    thorax = scene.thorax
    for side in draw_sides(rng, 0.45):
        deep_mm = float(np.exp(rng.uniform(np.log(11), np.log(55))))
        top = -60.0 + 2.6 * deep_mm + float(rng.uniform(0, 30))
        behind = rising(-thorax.seen[1], -35.0, 62.0)
        layer = np.float32(deep_mm) * behind * rising(-thorax.seen[2], -top, -top + 75.0)
        gap = np.minimum(-thorax.cage, np.maximum(thorax.dome, 0) * 1.6 + 0.15 * deep_mm) - layer
        scene.fluid[side] = gap
        share = (thorax.solid(gap) * (layer > 1.0) * half(scene, side) * thorax.lung).astype(np.float32)
        thorax.paint(WHOLE, "effusion", share)
        scene.mark(Part(type="pleural_effusion"), WHOLE, share)


def mosaic_attenuation_pattern(scene: Scene, rng: np.random.Generator) -> None:
    """Patches of trapped air, darker than the rest, which takes more blood."""
    thorax, noise = scene.thorax, smooth_field(rng, scene.thorax.grid.shape, 12)
    patches = rising(noise, float(rng.uniform(-0.25, 0.1)), 0.35)
    trapped, flushed = float(rng.uniform(70, 105)), float(rng.uniform(45, 80))
    change = np.float32(flushed) * (1 - patches) - np.float32(trapped) * patches
    air = thorax.lung * (thorax.hu < -600)
    thorax.hu = np.where(air > 0, np.maximum(thorax.hu + air * change, -985.0), thorax.hu).astype(np.float32)
    scene.mark(Part(type="mosaic_attenuation_pattern"), WHOLE, patches * air)


def emphysema(scene: Scene, rng: np.random.Generator) -> None:
    """Holes of some 6 mm, mostly in the upper lobes, and a few bullae under the pleura."""
    thorax, step = scene.thorax, scene.step_mm
    grain = ndimage.gaussian_filter(rng.standard_normal(thorax.grid.shape, dtype=np.float32), 3.2 / step)
    grain /= grain.std()
    high = rising(thorax.seen[2], -70.0, 60.0) if rng.random() < 0.75 else np.full_like(grain, 0.75)
    severity = float(rng.uniform(0.35, 1.0))
    holes = rising(grain - 2.2 * (1.0 - severity * high), -1.1, -0.3) * (high > 0.1)
    for _ in range(int(rng.integers(0, 5))):
        radius = float(rng.uniform(7, 17))
        centre, _ = scene.place(rng, (0.3 * radius, 0.9 * radius), radius, thorax.seen[2] > 10.0)
        crop, offsets = crop_about(thorax.grid, centre, 1.4 * radius + step)
        holes[crop] = np.maximum(holes[crop], soft(blob(rng, offsets, radius), 0.25 * step / radius))
    share = thorax.fill(WHOLE, "bulla", np.float32(0.9) * holes)
    scene.mark(Part(type="emphysema"), WHOLE, share, 0.45)


def interlobular_septal_thickening(scene: Scene, rng: np.random.Generator) -> None:
    """Sheets between lobules of some 15 mm, near the pleura and towards the bases."""
    thorax, step = scene.thorax, scene.step_mm
    size_mm, half_mm = float(rng.uniform(15, 22)), float(rng.uniform(0.6, 1.0))
    reach, top = float(rng.uniform(28, 45)), float(rng.uniform(20, 70))
    region = (thorax.lung > 0.5) & (scene.lung_room() < reach) & (thorax.seen[2] < top)
    voxels = np.argwhere(region)
    points = to_world(thorax.grid.affine, voxels)
    low, high = points.min(axis=0) - size_mm, points.max(axis=0) + size_mm
    axes = [np.arange(a, b, size_mm) for a, b in zip(low, high, strict=True)]
    seeds = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    seeds += rng.uniform(-0.4, 0.4, seeds.shape) * size_mm
    near, which = KDTree(seeds).query(points, k=2)
    apart = np.linalg.norm(seeds[which[:, 0]] - seeds[which[:, 1]], axis=1)
    away = (near[:, 1] ** 2 - near[:, 0] ** 2) / (2.0 * apart)
    patchy = rising(smooth_field(rng, thorax.grid.shape, 7), -1.4, -0.2) * rising(-thorax.seen[2], -top, 30.0 - top)
    share = np.zeros(thorax.grid.shape, dtype=np.float32)
    share[tuple(voxels.T)] = patchy[region] * np.clip((half_mm - away) / step + 0.5, 0, min(1.0, 2 * half_mm / step))
    scene.everywhere(Part(type="interlobular_septal_thickening"), "septum", share)


def lung_opacity(scene: Scene, rng: np.random.Generator) -> None:
    """Ground glass: patches in which some of the air is replaced, so that vessels stay visible."""
    for _ in range(int(rng.integers(1, 6))):
        radius = float(rng.uniform(14, 32))
        centre, _ = scene.place(rng, (0.3 * radius, 1.4 * radius), 0.5 * radius, None)
        crop, offsets = crop_about(scene.thorax.grid, centre, 1.8 * radius)
        share = soft(blob(rng, offsets, radius, rough=0.22), 0.12)
        scene.thorax.fill(crop, "consolidation", np.float32(rng.uniform(0.2, 0.42)) * share)
        scene.mark(Part(type="lung_opacity"), crop, share * scene.thorax.lung[crop])


def bronchiectasis(scene: Scene, rng: np.random.Generator) -> None:
    """Wide airways with thick walls in one or two lobes."""
    airways = scene.airways
    assert airways is not None
    lobes = rng.choice([1, 2, 3, 3, 4, 5, 5], int(rng.integers(1, 3)))
    inside = np.isin(airways.lobe, lobes) & (airways.served >= 3) & (airways.served <= 28)
    radius = float(rng.uniform(2.6, 4.2)) * (airways.served[inside] / 8.0) ** 0.25
    pieces = airways.starts[inside], airways.ends[inside]
    outer = splat_tubes(scene.thorax.grid, *pieces, radius + 1.6)
    part = Part(type="bronchiectasis")
    scene.thorax.fill(WHOLE, "airway_wall", outer)
    scene.thorax.fill(WHOLE, "air", splat_tubes(scene.thorax.grid, *pieces, radius))
    scene.mark(part, WHOLE, outer * scene.thorax.lung)


def peribronchial_thickening(scene: Scene, rng: np.random.Generator) -> None:
    """Sleeves about the airways of both lungs, thinner towards the periphery."""
    airways = scene.airways
    assert airways is not None
    inside = airways.served >= 4
    pieces, radii = (airways.starts[inside], airways.ends[inside]), airways.radii_mm[inside]
    outer = splat_tubes(scene.thorax.grid, *pieces, radii + float(rng.uniform(1.7, 2.9)))
    share = np.clip(outer - splat_tubes(scene.thorax.grid, *pieces, radii), 0, 1)
    scene.everywhere(Part(type="peribronchial_thickening"), "airway_wall", share, 0.45)


def atelectasis(scene: Scene, rng: np.random.Generator) -> None:
    """Lung pressed together beside fluid, plates above the diaphragm, or both."""
    thorax, compressed = scene.thorax, False
    for side, gap in scene.fluid.items():
        thick = float(rng.uniform(9, 20))
        close = rising(-thorax.seen[1], -20.0, 35.0) * rising(-thorax.seen[2], -30.0, 20.0)
        share = thorax.solid(gap - thick * close) * (close > 0.05) * half(scene, side)
        share = thorax.fill(WHOLE, "collapsed", 0.95 * share)
        compressed |= bool(share.max() > 0.5)
        scene.mark(Part(type="atelectasis", detail="compressive"), WHOLE, share)
    if compressed and rng.random() < 0.7:
        return
    for _ in range(int(rng.integers(1, 4))):
        wide, thick = float(rng.uniform(18, 38)), float(rng.uniform(4.0, 7.5))
        centre, _ = scene.place(rng, (4, 30), 10.0, (thorax.dome > 6) & (thorax.dome < 55))
        crop, offsets = crop_about(thorax.grid, centre, wide + 4.0)
        tilt = (
            Rotation.from_euler("xyz", rng.normal(0, 20, 3).clip(-40, 40), degrees=True).as_matrix().astype(np.float32)
        )
        x, y, z = np.tensordot(tilt, offsets, axes=1)
        bent = np.abs(z + 0.004 * x**2) - thick / 2
        rim = np.sqrt((x / wide) ** 2 + (y / (0.6 * wide)) ** 2)
        share = thorax.fill(crop, "collapsed", (0.9 * thorax.solid(bent) * soft(rim, 0.08)).astype(np.float32))
        scene.mark(Part(type="atelectasis", detail="linear"), crop, share, 0.4)


def consolidation(scene: Scene, rng: np.random.Generator) -> None:
    """Airless lung within one lobe, under the pleura, with air left in the airways that cross it."""
    assert scene.airways is not None
    for _ in range(1 + int(rng.random() < 0.35)):
        radius = float(rng.uniform(15, 36))
        centre, lobe = scene.place(rng, (0.2 * radius, 0.9 * radius), 0.8 * radius, None)
        crop, offsets = crop_about(scene.thorax.grid, centre, 1.8 * radius)
        share = soft(blob(rng, offsets, radius, rough=0.2), 0.08) * (scene.thorax.lobe[crop] == lobe)
        share = scene.thorax.fill(crop, "consolidation", np.float32(0.93) * share)
        scene.thorax.fill(crop, "air", 0.8 * scene.airways.lumen[crop] * share)
        scene.mark(Part(type="consolidation"), crop, share)


def pulmonary_fibrotic_sequela(scene: Scene, rng: np.random.Generator) -> None:
    """Scars of the apices: bands that run inwards from the pleura, and a cap of thickened pleura."""
    thorax = scene.thorax
    for side in draw_sides(rng, 0.4):
        apex = half(scene, side) & (thorax.seen[2] > 38.0)
        ends = [scene.place(rng, (1, 14), 2.0, apex)[0] for _ in range(int(rng.integers(2, 6)))]
        hilum = thorax.where((side * 45.0, -6.0, 20.0))[0]
        inner = np.array([end + rng.uniform(0.25, 0.5) * (hilum - end) + rng.normal(0, 5, 3) for end in ends])
        radii = rng.uniform(2.0, 3.8, len(ends))
        share = splat_tubes(thorax.grid, np.array(ends), inner, radii)
        if rng.random() < 0.6:
            cap = thorax.solid(-thorax.cage - float(rng.uniform(4, 9))) * rising(thorax.seen[2], 84.0, 98.0)
            share = np.maximum(share, cap * half(scene, side)).astype(np.float32)
        scene.everywhere(Part(type="pulmonary_fibrotic_sequela"), "scar", share, 0.4)


def lung_nodule(scene: Scene, rng: np.random.Generator) -> None:
    """One to five balls, some of them calcified."""
    tissue = "granuloma" if rng.random() < 0.15 else "nodule"
    count = 1 if rng.random() < 0.6 else int(rng.integers(2, 6))
    for number in range(count):
        radius = float(rng.uniform(4.5, 15) if number == 0 else rng.uniform(4, 8))
        radius = min(radius, 7.0) if tissue == "granuloma" else radius
        centre, _ = scene.place(rng, (0.7 * radius + 2.0, 60.0), radius, None)
        crop, offsets = crop_about(scene.thorax.grid, centre, 1.5 * radius + scene.step_mm)
        share = soft(blob(rng, offsets, radius, rough=0.1), 0.25 * scene.step_mm / radius)
        detail = "calcified" if tissue == "granuloma" else ""
        scene.mark(Part(type="lung_nodule", detail=detail), crop, scene.thorax.fill(crop, tissue, share))


# In the order in which they are drawn: what is drawn later lies on top.
DRAW: Mapping[str, Callable[[Scene, np.random.Generator], None]] = {
    function.__name__: function
    for function in (
        mosaic_attenuation_pattern, emphysema, interlobular_septal_thickening, lung_opacity, bronchiectasis,
        peribronchial_thickening, atelectasis, consolidation, pulmonary_fibrotic_sequela, lung_nodule,
    )
}  # fmt: skip
