"""From tissue fractions to acquired volumes: bias, texture, thick slices, motion, Rician noise, gain, missing series.

Everything drawn here comes from a generator of its own that never sees the disease, so that neither gain, noise,
spacing nor a missing sequence can give a finding away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from tomoglot.geometry import Grid
from tomoglot.studies.phantom.fields import Floats, smooth_field
from tomoglot.studies.phantom.signal import SEQUENCES, jittered, signals
from tomoglot.studies.study import Volume

THICK = ("t2w", "flair", "pd", "dwi", "t2s")  # often acquired as 2D slices
THICK_SHARE = 0.6
MISSING_SHARE = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Acquisition:
    """How one series is acquired: gain, signal to noise in white matter, slice thickness (None for 3D)."""

    gain: float
    snr: float
    slice_mm: float | None

    def record(self) -> dict[str, object]:
        """As written to truth JSON."""
        return asdict(self)


def draw_present(
    rng: np.random.Generator, names: Sequence[str], *, missing_share: float, asked: Sequence[str] | None
) -> NDArray[np.bool_]:
    """Which of the cohort's sequences a study has: each with 1 - `missing_share`, of those asked for, and never none.

    What is asked for moves no other draw: the same study with fewer sequences.
    """
    present = rng.random(len(names)) >= missing_share
    present[int(rng.integers(len(names)))] |= not present.any()
    if asked is not None:
        unknown = sorted(set(asked) - set(names))
        if unknown or not asked:
            raise ValueError(
                f"there is no sequence {', '.join(unknown) or '(none asked)'}; there are {', '.join(names)}"
            )
        present &= [name in asked for name in names]
        present[list(names).index(asked[0])] |= not present.any()
    return present


def draw_acquisitions(rng: np.random.Generator, asked: Sequence[str] | None = None) -> dict[str, Acquisition]:
    """The acquired sequences, each present with 3 in 4, never none, and how each was acquired."""
    present = draw_present(rng, SEQUENCES, missing_share=MISSING_SHARE, asked=asked)
    drawn = {}
    for name, acquired in zip(SEQUENCES, present, strict=True):
        gain, snr = float(np.exp(rng.uniform(np.log(150), np.log(1500)))), float(rng.uniform(18, 40))
        thick, slice_mm = rng.random() < THICK_SHARE, round(float(rng.uniform(3.0, 5.5)), 1)
        if acquired:
            drawn[name] = Acquisition(gain=gain, snr=snr, slice_mm=slice_mm if thick and name in THICK else None)
    return drawn


def slice_rows(grid: Grid, slice_mm: float) -> tuple[Floats, float]:
    """Matrix (slices x k) that averages thin slices into thick ones, and the first thick slice's centre in mm."""
    step = grid.spacing_mm[2]
    extent = grid.shape[2] * step
    count = int(extent // slice_mm)
    start = (extent - count * slice_mm) / 2.0
    edges = start + slice_mm * np.arange(count + 1)
    low, high = step * np.arange(grid.shape[2]), step * (np.arange(grid.shape[2]) + 1)
    overlap = np.minimum(edges[1:, None], high) - np.maximum(edges[:-1, None], low)
    rows = (np.clip(overlap, 0, None) / slice_mm).astype(np.float32)
    return rows, float(grid.affine[2, 3] - step / 2 + start + slice_mm / 2)


def thicken(voxels: Floats, grid: Grid, slice_mm: float) -> tuple[Floats, NDArray[np.float64]]:
    """Average along z into slices of `slice_mm`; also the affine of the result."""
    rows, first_mm = slice_rows(grid, slice_mm)
    affine = grid.affine.copy()
    affine[2, 2], affine[2, 3] = slice_mm, first_mm
    return voxels @ rows.T, affine


def move(voxels: Floats, grid: Grid, rng: np.random.Generator, motion_mm: float) -> Floats:
    """Small rigid motion about the grid's middle: `motion_mm` is the deviation of each shift; degrees likewise."""
    turn = Rotation.from_euler("xyz", rng.normal(0, motion_mm, 3), degrees=True).as_matrix()
    middle = (np.asarray(grid.shape) - 1) / 2
    shift = middle - turn @ middle + rng.normal(0, motion_mm, 3) / grid.spacing_mm[0]
    return ndimage.affine_transform(voxels, turn, shift, order=1)


def acquire(
    fractions: Floats,
    grid: Grid,
    plan: Mapping[str, Acquisition],
    rng: np.random.Generator,
    *,
    skull_stripped: bool,
    motion_mm: float,
) -> dict[str, Volume]:
    """Render every planned series as int16, on the cohort's grid or on its own thick slices.

    Noise outside the brain is set to zero when `skull_stripped`, as in the brain-only images that are shared openly.
    """
    brain = fractions.sum(axis=0)
    inside = brain > 0.02
    mixture = fractions[:, inside]
    table = jittered(rng)
    texture = ndimage.gaussian_filter(rng.standard_normal(grid.shape, dtype=np.float32), 0.8)[inside]
    texture /= max(float(texture.std()), 1e-6)
    volumes = {}
    for name, how in plan.items():
        bias = np.exp(0.18 * smooth_field(rng, grid.shape, 4).clip(-2, 2))
        clean = np.zeros(grid.shape, dtype=np.float32)
        clean[inside] = (signals(name, table) @ mixture) * (1.0 + 0.03 * texture) * bias[inside]
        if motion_mm > 0:
            clean = move(clean, grid, rng, motion_mm)
        affine = grid.affine
        cover = brain
        if how.slice_mm is not None and how.slice_mm > 1.2 * grid.spacing_mm[2]:
            clean, affine = thicken(clean, grid, how.slice_mm)
            cover, _ = thicken(brain, grid, how.slice_mm)
        volumes[name] = Volume(voxels=digitise(clean, cover, how, rng, skull_stripped=skull_stripped), affine=affine)
    return volumes


def digitise(
    clean: Floats, cover: Floats, how: Acquisition, rng: np.random.Generator, *, skull_stripped: bool
) -> NDArray[np.int16]:
    """Rician noise (magnitude of a complex normal), gain, and rounding to int16."""
    where = (cover > 0.5) if skull_stripped else np.ones(clean.shape, dtype=bool)
    signal = clean[where]
    real = signal + rng.standard_normal(signal.size, dtype=np.float32) / how.snr
    imaginary = rng.standard_normal(signal.size, dtype=np.float32) / how.snr
    stored = np.zeros(clean.shape, dtype=np.int16)
    stored[where] = np.clip(np.rint(how.gain * np.hypot(real, imaginary)), 1 if skull_stripped else 0, 32000)
    return stored
