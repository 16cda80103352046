"""Branching trees that fill a lobe, and thin tubes drawn by their volume, so that they show as on thick voxels.

A tree starts at its root and halves the places it has to serve until each has its own twig, as in the volume-filling
model of Kitaoka 1999 (J Appl Physiol 87:2207), without its rules on angles; radii follow Murray's law, the cube of a
stem being the sum of the cubes of its branches.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tomoglot.geometry import Grid
from tomoglot.studies.phantom.fields import Floats

Doubles = NDArray[np.float64]
GOLDEN = np.pi * (3.0 - np.sqrt(5.0))


def grow(root: Doubles, places: Doubles, rng: np.random.Generator) -> tuple[Doubles, Doubles, NDArray[np.intp]]:
    """A tree from `root` to every one of `places` (n x 3): starts and ends of its pieces, and twigs each one serves."""
    starts, ends, served = [], [], []
    todo = [(np.asarray(root, dtype=np.float64), np.asarray(places, dtype=np.float64))]
    while todo:
        start, group = todo.pop()
        middle = group.mean(axis=0)
        end = group[0] if len(group) == 1 else start + rng.uniform(0.35, 0.5) * (middle - start)
        starts.append(start)
        ends.append(end)
        served.append(len(group))
        if len(group) > 1:
            # Cut across the longest side: cheaper than principal axes, and lobes lie nearly along x, y and z.
            side = int(np.ptp(group, axis=0).argmax())
            order = np.argsort(group[:, side], kind="stable")
            cut = int(np.clip(round(len(group) * rng.uniform(0.3, 0.7)), 1, len(group) - 1))
            todo += [(end, group[order[:cut]]), (end, group[order[cut:]])]
    return np.array(starts), np.array(ends), np.array(served)


def splat_tubes(grid: Grid, starts: Doubles, ends: Doubles, radii_mm: Doubles) -> Floats:
    """Share of each voxel inside straight tubes, in world mm: each tube is cut into grains that carry its volume.

    Each grain is shared between the eight nearest voxels, so that a tube thinner than a voxel keeps its volume.
    """
    step = grid.spacing_mm[0]
    along = ends - starts
    length = np.linalg.norm(along, axis=1)
    slices = np.maximum(1, np.ceil(length / (0.5 * step))).astype(int)
    grains = np.clip(np.ceil(4.0 * (radii_mm / step) ** 2), 1, 200).astype(int)
    counts = slices * grains
    tube = np.repeat(np.arange(len(counts)), counts)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    forth = ((within // grains[tube]) + 0.5) / slices[tube]
    place = within % grains[tube]
    out = radii_mm[tube] * np.sqrt((place + 0.5) / grains[tube])
    # Two directions across each tube; the helper axis is one that is never along it.
    across = np.cross(along, np.where((np.abs(along[:, :1]) < 0.7 * length[:, None]), [[1.0, 0, 0]], [[0, 1.0, 0]]))
    across /= np.maximum(np.linalg.norm(across, axis=1, keepdims=True), 1e-9)
    other = np.cross(along / np.maximum(length, 1e-9)[:, None], across)
    turn = within * GOLDEN  # on from slice to slice, so that few grains lie about the axis as well
    points = starts[tube] + along[tube] * forth[:, None]
    points += (out * np.cos(turn))[:, None] * across[tube] + (out * np.sin(turn))[:, None] * other[tube]
    volumes = (np.pi * radii_mm**2 * length / counts)[tube] / step**3
    return splat(grid, points, volumes)


def splat(grid: Grid, points: Doubles, volumes: Doubles) -> Floats:
    """Volume carried by points (n x 3, world mm), in voxels, spread over the eight nearest voxels; at most 1."""
    places = (points - grid.affine[:3, 3]) / np.asarray(grid.spacing_mm)
    low = np.floor(places).astype(np.intp)
    rest = places - low
    total = np.zeros(int(np.prod(grid.shape)))
    for corner in np.ndindex(2, 2, 2):
        voxel = low + corner
        weight = volumes * np.prod(np.where(np.array(corner) == 1, rest, 1.0 - rest), axis=1)
        inside = ((voxel >= 0) & (voxel < grid.shape)).all(axis=1)
        flat = np.ravel_multi_index(tuple(voxel[inside].T), grid.shape)
        total += np.bincount(flat, weights=weight[inside], minlength=total.size)
    return np.minimum(total, 1.0).astype(np.float32).reshape(grid.shape)


def path_tubes(points: Doubles, radius_mm: float) -> tuple[Doubles, Doubles, Doubles]:
    """Starts, ends and radii of a tube through points."""
    return points[:-1], points[1:], np.full(len(points) - 1, radius_mm)
