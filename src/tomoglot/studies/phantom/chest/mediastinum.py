"""Findings between and in front of the lungs: nodes, hernia, pericardium, calcified vessels, devices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tomoglot.studies.phantom.chest.scene import Part, Scene
from tomoglot.studies.phantom.chest.thorax import AORTA_MM, front_mm, heart_axes
from tomoglot.studies.phantom.chest.trees import Doubles, path_tubes, splat_tubes
from tomoglot.studies.phantom.shapes import WHOLE, Place

STATIONS: Mapping[str, tuple[float, float, float]] = {
    "right paratracheal": (20, 0, 52), "left paratracheal": (-14, -14, 78), "subcarinal": (1, -16, 14),
    "prevascular": (-14, 40, 50), "right hilar": (48, -6, 6), "left hilar": (-54, -6, 6),
}  # fmt: skip
PORT_MM = (62.0, 62.0)
PACEMAKER_MM = (-66.0, 60.0)


def pericardial_effusion(scene: Scene, _rng: np.random.Generator) -> None:
    """Fluid that the thorax was built with."""
    scene.mark(Part(type="pericardial_effusion"), WHOLE, scene.thorax.sac)


def hiatal_hernia(scene: Scene, rng: np.random.Generator) -> None:
    """A part of the stomach behind the heart, with gas in front of what it holds."""
    thorax, size = scene.thorax, float(rng.uniform(20, 36))
    centre = np.array([-8.0, -24.0, -62.0]) + rng.normal(0, 3, 3).clip(-6, 6)
    crop, gap = thorax.ellipsoid(centre, (size, 0.72 * size, 0.95 * size))
    gap = np.maximum(gap, -46.0 - thorax.seen[1][crop])  # in front of spine and aorta
    share = thorax.solid(gap)
    thorax.paint(crop, "gut", share)
    thorax.paint(crop, "meal", thorax.solid(gap + 3.5))
    level = centre[1] + float(rng.uniform(-0.2, 0.4)) * size - thorax.seen[1][crop]
    thorax.paint(crop, "air", thorax.solid(np.maximum(gap + 3.5, level.astype(np.float32))))
    scene.mark(Part(type="hiatal_hernia"), crop, share)


def lymphadenopathy(scene: Scene, rng: np.random.Generator) -> None:
    """Nodes of more than 10 mm across their short axis (Glazer 1985, AJR 144:261) at one to four stations."""
    thorax, names = scene.thorax, list(STATIONS)
    for number in rng.permutation(len(names))[: int(rng.integers(1, 5))]:
        short = float(rng.uniform(6.5, 13))  # half of it
        radii = short * np.array([1.0, 1.0, float(rng.uniform(1.15, 1.6))])
        centre = np.asarray(STATIONS[names[number]]) + rng.normal(0, 2, 3)
        crop, gap = thorax.ellipsoid(centre, rng.permutation(radii))
        share = thorax.solid(gap) * (1.0 - thorax.central_air[crop])
        thorax.paint(crop, "node", share)
        scene.mark(Part(type="lymphadenopathy", detail=names[number]), crop, share)


def aorta_at(place: float) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Middle, direction and radius of the aorta, `place` from 0 to 1 along its course."""
    course = np.asarray(AORTA_MM, dtype=np.float64)
    at = place * (len(course) - 1)
    piece = min(int(at), len(course) - 2)
    way = course[piece + 1] - course[piece]
    return course[piece] + (at - piece) * way, way / np.linalg.norm(way), 15.5 - 4.5 * at / (len(course) - 1)


def arterial_wall_calcification(scene: Scene, rng: np.random.Generator) -> None:
    """Plaques: arcs on the wall of the aorta, most of them in its arch and behind."""
    pieces = []
    for _ in range(int(rng.integers(3, 12))):
        first, width = float(rng.uniform(0, 2 * np.pi)), float(rng.uniform(0.4, 1.3))
        middle, way, radius = aorta_at(float(rng.uniform(0.2, 0.95)))
        across = np.cross(way, (0.3, 0.5, 0.81))
        across /= np.linalg.norm(across)
        turn = np.linspace(first, first + width, 5)
        arc = np.cos(turn)[:, None] * across + np.sin(turn)[:, None] * np.cross(way, across)
        points = scene.thorax.where(middle + radius * arc)
        pieces.append(path_tubes(points, float(rng.uniform(1.1, 2.2))))
    share = splat_tubes(scene.thorax.grid, *(np.concatenate(column) for column in zip(*pieces, strict=True)))
    scene.thorax.paint(WHOLE, "calcium", share)
    scene.mark(Part(type="arterial_wall_calcification"), WHOLE, share, 0.2)


def coronaries(scene: Scene) -> dict[str, Doubles]:
    """Courses of the three arteries on the heart's surface (world mm, n x 3)."""
    centre, radii, axes = heart_axes(scene.build.ratio)

    def on_heart(along: NDArray[np.float64], turn: NDArray[np.float64]) -> Doubles:
        round_ = np.sqrt(1 - along**2)
        unit = np.stack([along, round_ * np.cos(turn), round_ * np.sin(turn)], axis=1)
        return scene.thorax.where(centre + (unit * (radii + 2.0)) @ axes)

    path, base = np.linspace(0, 1, 24), np.full(24, -0.3)
    return {
        "left anterior descending": on_heart(-0.35 + 1.2 * path, 0.15 + 0.25 * path),
        "circumflex": on_heart(base, 0.35 + 2.0 * path),
        "right coronary": on_heart(base, -0.5 - 2.2 * path),
    }


def coronary_artery_wall_calcification(scene: Scene, rng: np.random.Generator) -> None:
    """Spots along one to three coronary arteries."""
    courses = coronaries(scene)
    for name in rng.permutation(list(courses))[: int(rng.integers(1, 4))]:
        course, pieces = courses[str(name)], []
        for _ in range(int(rng.integers(1, 5))):
            start, length = int(rng.integers(0, 18)), int(rng.integers(2, 6))
            pieces.append(path_tubes(course[start : start + length], float(rng.uniform(1.2, 2.4))))
        share = splat_tubes(scene.thorax.grid, *(np.concatenate(column) for column in zip(*pieces, strict=True)))
        scene.thorax.paint(WHOLE, "calcium", share)
        scene.mark(Part(type="coronary_artery_wall_calcification", detail=str(name)), WHOLE, share, 0.2)


def skin_deep(scene: Scene, place: tuple[float, float], deep_mm: float) -> tuple[float, float, float]:
    """Template position that deep in front of the ribs, at x and z."""
    x, z = place
    return x, float(front_mm(np.array(z, dtype=np.float32))) * (1.0 - (x / 150.0) ** 2) + 14.0 - deep_mm, z


def medical_material(scene: Scene, rng: np.random.Generator) -> None:
    """A central venous catheter, a port with its catheter, a pacemaker with its leads, or sternal wires."""
    thorax = scene.thorax
    detail = str(rng.choice(["central venous catheter", "port", "pacemaker", "sternal wires"]))
    cava: tuple[Place, ...] = ((26, 16, 84), (25, 16, 60), (26, 12, 20), (26, 10, float(rng.uniform(-8, 14))))
    tissue, radius, courses = "polymer", 1.5, list[Sequence[Place]]()
    body = np.zeros(thorax.grid.shape, dtype=np.float32)
    if detail == "central venous catheter":
        courses = [((52, 14, 126), (40, 14, 106), *cava)]
    elif detail == "port":
        chamber = skin_deep(scene, PORT_MM, 2.0)
        courses = [(chamber, (60, 30, 100), (40, 14, 100), *cava)]
        tissue = "metal"
        crop, gap = thorax.ellipsoid(chamber, (13, 6, 13))
        body[crop] = thorax.solid(gap)
    elif detail == "pacemaker":
        case = skin_deep(scene, PACEMAKER_MM, 2.0)
        tissue, radius = "metal", 1.2
        apex = heart_axes(scene.build.ratio)[0] + np.array([-6.0, 20.0, -24.0])
        courses = [(case, (-60, 26, 98), (-30, 30, 92), *cava, (20, 14, -8), tuple(apex)), (*cava, (30, 22, -4))]
        crop, gap = thorax.ellipsoid(case, (22, 6, 24))
        body[crop] = thorax.solid(gap)
    else:
        tissue, radius = "metal", 1.0
        for z in np.arange(-20.0, 72.0, float(rng.uniform(15, 20))):
            middle = float(front_mm(np.array(z, dtype=np.float32))) + 7.0
            turn = np.linspace(0, 2 * np.pi, 13)
            courses.append([(21.0 * np.cos(a), middle + 9.5 * np.sin(a), z + 3.0 * np.cos(a)) for a in turn])
    tubes = [path_tubes(thorax.where(course), radius) for course in courses]
    lines = splat_tubes(thorax.grid, *(np.concatenate(column) for column in zip(*tubes, strict=True)))
    thorax.paint(WHOLE, tissue, lines)
    thorax.paint(WHOLE, "metal", body)
    scene.mark(Part(type="medical_material", detail=detail), WHOLE, np.maximum(lines, body), 0.1)


# Before the trees of the lungs are drawn, and after everything else.
BEFORE: Mapping[str, Callable[[Scene, np.random.Generator], None]] = {
    function.__name__: function for function in (pericardial_effusion, hiatal_hernia, lymphadenopathy)
}
AFTER: Mapping[str, Callable[[Scene, np.random.Generator], None]] = {
    function.__name__: function
    for function in (arterial_wall_calcification, coronary_artery_wall_calcification, medical_material)
}
