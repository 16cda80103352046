"""From one examined study to what the store keeps: RAS+ axes, one grid, one field of view, int16.

A pure function of the study and the plan. World positions stay true through every step: what changes is which voxels
are sampled, never where the affine says they are.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoglot.geometry import Grid, regular_grid, resample, to_ras
from tomoglot.store.catalogue import Intensity
from tomoglot.store.plan import PERCENTILES, Plan
from tomoglot.studies.curate import Examined
from tomoglot.studies.source import RejectedRow
from tomoglot.studies.study import Rejected, Volume

INT16_MAX = 32767
# Between air (-1000) and water (0): the skin. Noise of the air, and lungs, lie below it.
SKIN_HU = -500.0

# Of each voxel of a field, while a study is conformed: twice what is kept of each sequence, as its volumes are stacked.
# Measured as peaks: 6 bytes with one sequence, 15 with three, 25 with three that are resampled and a mask.
BYTES_PER_SEQUENCE = 4
BYTES_BESIDE = 2

Field = tuple[tuple[int, int, int], tuple[int, int, int]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Conformed:
    """A study as stored: `voxels` int16 (sequence, i, j, k) in the order of `sequences`, one affine for all.

    `native` is the grid of the finest series as it came, before its axes were turned; `mask_kept` and `mask_field` are
    as in the catalogue's row.
    """

    sequences: tuple[str, ...]
    voxels: NDArray[np.int16]
    affine: NDArray[np.float64]
    intensities: Mapping[str, Intensity]
    mask: NDArray[np.uint8] | None
    native: Grid
    rejected: tuple[RejectedRow, ...] = ()
    mask_kept: float | None = None
    mask_field: tuple[int, int, int] | None = None


def conform(examined: Examined, plan: Plan) -> Conformed:
    """Bring all series of a study onto one grid, as the plan says.

    The study grid is that of the finest series (smallest voxel), or one of `plan.spacing_mm` over its field of view.
    A field of `plan.field_voxels` is centred on the middle of the box round that series' non-zero voxels (in CT: round
    the body), so that studies with different fields of view line up.

    Raises:
        Rejected: no series has a signal inside the field, or the mask does not hold whole numbers from 0 to 255.
    """
    turned = {name: _turn(examined.volumes[name]) for name in sorted(examined.volumes)}
    if not turned:
        raise Rejected("no-usable-series", "no series of this study could be read")
    finest = min(turned, key=lambda name: (float(np.prod(turned[name].grid.spacing_mm)), name))
    grid = turned[finest].grid
    if grid.is_flat and plan.field_voxels is not None and plan.field_voxels[2] != 1:
        i, j, k = plan.field_voxels
        raise Rejected("flat-image", f"images have one voxel along k, and the field keeps {k}: give it as {i},{j},1")
    if plan.spacing_mm is not None:
        grid = regular_grid(grid, plan.spacing_mm)
    on_grid = {finest: onto(turned[finest], grid, plan)}
    middle = _middle(on_grid[finest], plan)
    field = _field(middle, grid, plan)
    stored: dict[str, NDArray[np.int16]] = {}
    intensities: dict[str, Intensity] = {}
    rejected = []
    for name, volume in turned.items():
        try:
            if volume.grid.is_flat != grid.is_flat:
                # Places in the plane of an image are no places in the body.
                raise Rejected("image-beside-volume", "an image and a volume share no grid; make them two studies")
            real = cut(on_grid.pop(name) if name in on_grid else onto(volume, grid, plan), *field, fill=plan.background)
            stored[name], scale = to_int16(real)
            intensities[name] = measure(stored[name], scale, plan)
        except Rejected as reason:
            stored.pop(name, None)
            rejected.append(_row(examined, name, reason))
    if not stored:
        raise Rejected("no-usable-series", "no series of this study has a signal inside the field of view")
    mask, kept, needed = (None, None, None) if examined.mask is None else _mask(examined.mask, grid, field, middle)
    affine = grid.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ np.asarray(field[0], dtype=np.float64)
    return Conformed(
        sequences=tuple(stored),
        voxels=np.stack(list(stored.values())),
        affine=affine,
        intensities=intensities,
        mask=mask,
        native=examined.volumes[finest].grid,
        rejected=tuple(rejected),
        mask_kept=kept,
        mask_field=needed,
    )


def check_memory(plan: Plan, *, sequences: int, workers: int) -> None:
    """Refuse a field that so many workers cannot hold at once: the system would end them, and say nothing.

    `sequences` is the most that a study has. What is counted is the least that conforming takes.

    Raises:
        ValueError: it needs more memory than there is.
    """
    free = available_bytes()
    if plan.field_voxels is None or free is None:
        return
    i, j, k = plan.field_voxels
    each = i * j * k * (BYTES_PER_SEQUENCE * sequences + BYTES_BESIDE)
    if each * workers > free:
        raise ValueError(
            f"a field of {i} x {j} x {k} voxels takes at least {each / 2**30:.1f} GiB of memory for a study ("
            f"sequences: {sequences}), {each * workers / 2**30:.1f} GiB for {workers} at a time, and "
            f"{free / 2**30:.1f} GiB are free; choose a smaller field or fewer workers"
        )


def available_bytes() -> int | None:
    """Memory that may still be taken: what Linux says is available, elsewhere all there is; None where unknown."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        names = os.sysconf_names if hasattr(os, "sysconf") else {}
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if "SC_PHYS_PAGES" in names else None


def cut(
    voxels: NDArray[np.generic], start: tuple[int, int, int], shape: tuple[int, int, int], *, fill: float = 0
) -> NDArray[np.generic]:
    """Box of `shape` voxels from `start` (may lie outside), `fill` where the volume has no voxel."""
    box = np.full(shape, fill, dtype=voxels.dtype)
    inside, target = [], []
    for first, length, size in zip(start, shape, voxels.shape, strict=True):
        low, high = max(first, 0), min(first + length, size)
        if low >= high:
            return box
        inside.append(slice(low, high))
        target.append(slice(low - first, high - first))
    box[tuple(target)] = voxels[tuple(inside)]
    return box


def to_int16(real: NDArray[np.generic]) -> tuple[NDArray[np.int16], float]:
    """Stored values and the scale that brings them back: real = stored * scale.

    Whole numbers that fit int16 are kept exactly (scale 1). Anything else is scaled by its largest magnitude, with no
    offset, so that zero stays zero; the error is at most half a step, 1/65534 of that magnitude.

    Raises:
        Rejected: a voxel is not finite, or the range is too small to scale.
    """
    if real.dtype.kind == "f" and not np.isfinite(real).all():
        raise Rejected("non-finite-voxels", "some voxels are NaN or infinite")
    low, high = float(real.min()), float(real.max())
    fits = low >= -INT16_MAX - 1 and high <= INT16_MAX
    if fits and (real.dtype.kind in "iub" or bool((real == np.rint(real)).all())):
        return real.astype(np.int16), 1.0
    scale = max(abs(low), abs(high)) / INT16_MAX
    if scale < np.finfo(np.float64).tiny:
        raise Rejected("intensity-range", f"intensities reach only {max(abs(low), abs(high)):.3g}, too small to scale")
    return np.rint(real.astype(np.float64) / scale).astype(np.int16), scale


def measure(stored: NDArray[np.int16], scale: float, plan: Plan) -> Intensity:
    """Statistics of the real values of the voxels that are not background: not zero, or in CT above the window's end.

    Raises:
        Rejected: every voxel is background.
    """
    signal = stored[stored != 0 if plan.zero_is_background else stored * scale > plan.background]
    if signal.size == 0:
        nothing = "zero" if plan.zero_is_background else f"{plan.background:g} HU or less"
        raise Rejected("empty-in-field", f"every voxel inside the field of view is {nothing}; widen field_voxels")
    marks = np.percentile(signal, PERCENTILES)
    return Intensity(
        scale=scale,
        offset=0.0,
        mean=float(signal.mean(dtype=np.float64)) * scale,
        std=float(signal.std(dtype=np.float64)) * scale,
        percentiles={str(name): float(mark) * scale for name, mark in zip(PERCENTILES, marks, strict=True)},
        foreground=signal.size / stored.size,
    )


def _turn(volume: Volume) -> Volume:
    voxels, affine = to_ras(volume.voxels, volume.affine)
    return Volume(voxels=voxels, affine=affine)


def onto(volume: Volume, grid: Grid, plan: Plan) -> NDArray[np.generic]:
    """Read a volume on a grid; a volume that lies on it already is returned as it is, so whole numbers stay exact.

    Where the plan holds zero to be background, only signal is interpolated: a new voxel is the mean of the signal
    round it, or background where less than half of what is round it is signal. Mixing tissue with the zeros of a
    brain-only image draws a dark rim round the head, which is stronger than a lesion; measured on simulated studies
    of 3 mm read at 4 mm, a network learnt the rim by heart and found infarcts at chance (results/tuning.md).
    """
    if volume.grid.same_as(grid):
        return volume.voxels
    if not plan.zero_is_background:
        return resample(volume.voxels, volume.affine, grid, outside=plan.background)
    signal = resample(volume.voxels, volume.affine, grid)
    share = resample((volume.voxels != 0).astype(np.float32), volume.affine, grid)
    known = share >= 0.5
    signal[known] /= share[known]
    signal[~known] = 0.0
    return signal


def _middle(voxels: NDArray[Any], plan: Plan) -> NDArray[np.float64]:
    """Middle of the box round a volume's signal, in voxels: a whole number or a half along each axis."""
    low, high = np.zeros(3), np.asarray(voxels.shape) - 1.0
    signal = voxels != 0 if plan.zero_is_background else voxels > max(plan.background, SKIN_HU)
    for axis in range(3):
        hit = np.flatnonzero(signal.any(axis=tuple(other for other in range(3) if other != axis)))
        if hit.size:
            low[axis], high[axis] = hit[0], hit[-1]
    return np.asarray((low + high) / 2)


def _field(middle: NDArray[np.float64], grid: Grid, plan: Plan) -> Field:
    """First voxel and shape of the field to keep, both in voxels of the study grid."""
    if plan.field_voxels is None:
        return (0, 0, 0), grid.shape
    start = np.floor(middle - (np.asarray(plan.field_voxels) - 1) / 2 + 0.5).astype(int)
    return (int(start[0]), int(start[1]), int(start[2])), plan.field_voxels


def _mask(
    mask: Volume, grid: Grid, field: Field, middle: NDArray[np.float64]
) -> tuple[NDArray[np.uint8], float | None, tuple[int, int, int] | None]:
    """The mask inside the field, the share of it that lies there, and a field round the same middle that holds all.

    Of a mask without a marked voxel the last two are None.
    """
    values = mask.voxels
    if not np.isfinite(values).all() or (values != np.rint(values)).any() or values.min() < 0 or values.max() > 255:
        raise Rejected("bad-mask", f"a mask holds whole numbers 0 to 255, this one {values.min()} to {values.max()}")
    turned = _turn(mask)
    whole = resample(turned.voxels, turned.affine, grid, order=0)
    inside = cut(whole, *field).astype(np.uint8)
    places = np.argwhere(whole)
    if not len(places):
        return inside, None, None
    reach = np.maximum(middle - places.min(axis=0), places.max(axis=0) - middle)
    i, j, k = (int(2 * far) + 1 for far in reach)
    return inside, np.count_nonzero(inside) / len(places), (i, j, k)


def _row(examined: Examined, sequence: str, reason: Rejected) -> RejectedRow:
    study = examined.study
    files = [series.path.name for series in study.series if series.sequence == sequence]
    return RejectedRow(
        subject=study.subject,
        study=study.study,
        sequence=sequence,
        file=files[0] if files else "",
        reason=reason.reason,
        evidence=reason.evidence,
    )
