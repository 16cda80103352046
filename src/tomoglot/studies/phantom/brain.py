"""Template anatomy of the simulated brain: tissue maps in MNI space, resampled once a process, and a rule for lobes.

The maps are the ICBM 2009a non-linear symmetric averages that nilearn carries inside its package; nothing is fetched.
Positions are world millimetres in RAS+ MNI space.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tomoglot.geometry import Affine, Grid, centred_grid, resample, to_world
from tomoglot.studies.phantom.fields import Floats

BOX_MM = (192.0, 224.0, 192.0)
CENTRE_MM = (0.0, -18.0, 6.0)
SEPTUM_MM = (0.0, 8.0, 14.0)
VENTRICLES_MM = (0.0, -10.0, 14.0)
LOBES = ("frontal", "parietal", "temporal", "occipital", "insula", "deep", "cerebellum", "brainstem")


@dataclass(frozen=True, slots=True, eq=False)
class Template:
    """Tissue fractions on the target grid, and what is derived from them once."""

    grid: Grid
    gm: Floats
    wm: Floats
    brain: Floats
    ventricles: Floats
    rim: Floats  # nearness of cortical GM to CSF, 0 to 1: where atrophy thins the cortex
    depth_mm: Floats  # distance from the outside of the brain
    near: NDArray[np.intp]  # flat indices of every voxel that a warped brain can reach
    near_mm: Floats  # their world positions, n x 3


def cube(spacing_mm: float) -> Grid:
    """The cohort's RAS+ grid: 192 x 224 x 192 mm about the brain, 96 x 112 x 96 voxels at 2 mm."""
    if not 1.0 <= spacing_mm <= 8.0:
        raise ValueError(f"spacing_mm is {spacing_mm}; the simulated brain is made at 1 to 8 mm")
    i, j, k = (round(extent / spacing_mm) for extent in BOX_MM)
    return centred_grid(np.asarray(CENTRE_MM), np.eye(3), (i, j, k), (spacing_mm,) * 3)


def maps_folder() -> Path:
    """Folder of nilearn's packaged maps, found without importing nilearn."""
    found = importlib.util.find_spec("nilearn")
    if found is None or found.origin is None:
        raise ValueError(
            "the simulated brain needs the tissue maps packaged with nilearn, which is not installed: "
            "pip install 'tomoglot[demo]'"
        )
    return Path(found.origin).parent / "datasets" / "data"


def read_map(name: str) -> tuple[Floats, Affine]:
    """One packaged map ("t1", "gm", "wm") scaled to 0..1, and its affine."""
    path = maps_folder() / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz"
    if not path.is_file():
        raise ValueError(f"nilearn holds no {path.name}; the simulated brain needs nilearn 0.12 to 0.14")
    image = nib.load(path)
    voxels = np.asarray(image.dataobj, dtype=np.float32)
    return voxels / max(float(voxels.max()), 1.0), image.affine


@lru_cache(maxsize=2)
def template(spacing_mm: float) -> Template:
    """Template on the cohort's grid (3 s at 2 mm, then cached for the process)."""
    grid = cube(spacing_mm)
    t1, affine = read_map("t1")
    gm, wm = (np.clip(resample(read_map(name)[0], affine, grid), 0, 1) for name in ("gm", "wm"))
    brain = np.clip(resample((t1 > 0).astype(np.float32), affine, grid), 0, 1)
    brain = np.maximum(brain, ndimage.binary_fill_holes(brain > 0.5).astype(np.float32) * (brain > 0.5))
    total = gm + wm
    over = np.maximum(total / np.maximum(brain, 1e-6), 1.0)
    gm, wm = gm / over, wm / over
    csf = brain - gm - wm
    depth_mm = ndimage.distance_transform_edt(brain > 0.5, sampling=grid.spacing_mm).astype(np.float32)
    inside = find_ventricles(grid, csf, depth_mm)
    # A soft border keeps the partial volume: CSF within one voxel of the ventricles belongs to them.
    ventricles = csf * ndimage.binary_dilation(inside)
    rim = np.clip(2.5 * ndimage.gaussian_filter(csf - ventricles, 3.0 / spacing_mm), 0, 1)
    reach = ndimage.distance_transform_edt(brain < 0.02, sampling=grid.spacing_mm) < 16.0
    near = np.flatnonzero(reach)
    near_mm = to_world(grid.affine, np.stack(np.unravel_index(near, grid.shape), axis=-1)).astype(np.float32)
    return Template(grid, gm, wm, brain, ventricles, rim, depth_mm, near, near_mm)


def find_ventricles(grid: Grid, csf: Floats, depth_mm: Floats) -> NDArray[np.bool_]:
    """Lateral and third ventricles: CSF more than 20 mm deep inside two boxes, about the bodies and the atria."""
    i, j, k = (np.arange(size) for size in grid.shape)
    origin, step = grid.affine[:3, 3], grid.spacing_mm[0]
    x, y, z = np.abs(origin[0] + step * i)[:, None, None], (origin[1] + step * j)[None, :, None], origin[2] + step * k
    bodies = (x < 24) & (y > -46) & (y < 32) & (z > -4) & (z < 30)
    atria = (x > 10) & (x < 40) & (y > -62) & (y <= -28) & (z > -12) & (z < 26)
    return (csf > 0.5) & (depth_mm > 20) & (bodies | atria)


def lobe_of(point_mm: NDArray[np.floating]) -> NDArray[np.str_]:
    """Lobe of each template position (n x 3, MNI mm) by planes in |x|, y and z; a coarse rule of our own."""
    x, y, z = np.abs(point_mm[:, 0]), point_mm[:, 1], point_mm[:, 2]
    sylvian = z < -1.0 - 0.5 * y  # the lateral fissure rises towards the back
    rules = (
        ((x < 14) & (y > -46) & (y < -10) & (z < -8), "brainstem"),
        ((y < -38) & (z < -20), "cerebellum"),
        (y < -62.0 - 0.4 * np.maximum(z - 5.0, 0.0), "occipital"),
        ((x < 31) & (y > -34) & (y < 20) & (z > -10) & (z < 22), "deep"),
        ((x < 44) & (x >= 31) & (y > -26) & (y < 24) & (z > -12) & (z < 14), "insula"),
        ((x > 16) & (y < 22) & (z < 22) & sylvian, "temporal"),
        (y < -8.0 - 0.5 * (z - 30.0), "parietal"),
    )
    conditions, names = zip(*rules, strict=True)
    return np.select(conditions, names, default="frontal")
