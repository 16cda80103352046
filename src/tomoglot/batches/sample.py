"""One sample: where its crop starts, which sequences it shows, and its intensities.

Everything random comes from the generator that is passed in, so a sample can be made again from its key alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tomoglot.batches.augment import Augment, Drawn, apply, draw, flip, flip_affine
from tomoglot.batches.intensity import apply_intensity
from tomoglot.geometry import to_world
from tomoglot.store.catalogue import StudyRow
from tomoglot.store.plan import Plan

Voxels = tuple[int, int, int]
# Mask value of a study that has no mask: not the same as a study without a lesion.
NO_MASK = -1


class CropSource(Protocol):
    """What a sample needs of a store."""

    @property
    def plan(self) -> Plan:
        """How intensities are scaled."""
        ...

    def read_crop(
        self, row: StudyRow, start: Voxels, shape: Voxels, *, sequences: Sequence[str] | None = None
    ) -> NDArray[np.int16]:
        """Stored values (c, i, j, k), zero outside the volume."""
        ...

    def read_mask(self, row: StudyRow, start: Voxels, shape: Voxels) -> NDArray[np.uint8]:
        """Lesion labels (i, j, k), zero outside the volume."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What every sample of a loader looks like."""

    sequences: tuple[str, ...]
    crop_voxels: Voxels
    drop_sequence_probability: float = 0.0
    sequences_per_study: int | None = None
    augment: Augment.Config = field(default_factory=Augment.Config)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """What is known of a sample beside its voxels: acquired (c,) and the affine of its crop."""

    acquired: NDArray[np.bool_]
    affine: NDArray[np.float64]


def build_sample(
    store: CropSource,
    row: StudyRow,
    wanted: Wanted,
    *,
    rng: np.random.Generator | None,
    out: NDArray[np.float32],
    mask_out: NDArray[np.int16] | None = None,
) -> Sample:
    """Fill `out` (c, i, j, k) with one study's crop, and `mask_out` (i, j, k) with its lesion labels.

    With `rng` the crop, the hidden sequences and the augmentation are drawn; without, the crop is the central one and
    nothing is hidden or varied. Channels that were not acquired are zero. Voxels outside the volume are zero.
    """
    acquired = np.array([name in row.sequences for name in wanted.sequences])
    drawn = Drawn()
    if rng is None:
        start = centred_start(row.shape, wanted.crop_voxels)
    else:
        drawn = draw(rng, wanted.augment, channels=len(acquired))
        start = draw_start(rng, row.shape, wanted.crop_voxels, drawn.jitter_voxels)
        acquired = hide_sequences(
            rng, acquired, wanted.drop_sequence_probability, at_most=wanted.sequences_per_study or len(acquired)
        )
    names = [name for name, there in zip(wanted.sequences, acquired, strict=True) if there]
    stored = iter(store.read_crop(row, start, wanted.crop_voxels, sequences=names))
    for channel, name in enumerate(wanted.sequences):
        if acquired[channel]:
            apply_intensity(next(stored), row.intensities[name], store.plan, out=out[channel])
            # The store pads with the stored value 0, which is not always the rule's zero (0 HU is water, not air).
            clear_outside(out[channel], start, row.shape)
        else:
            out[channel] = 0
    apply(out, drawn)
    if mask_out is not None:
        if row.has_mask:
            mask_out[...] = flip(store.read_mask(row, start, wanted.crop_voxels), drawn.flips)
        else:
            mask_out[...] = NO_MASK
    affine = flip_affine(crop_affine(np.asarray(row.affine), start), wanted.crop_voxels, drawn.flips)
    return Sample(acquired=acquired, affine=affine)


def centred_start(shape: Voxels, crop_voxels: Voxels) -> Voxels:
    """First voxel of the central crop; negative where the crop is larger than the volume."""
    i, j, k = ((size - crop) // 2 for size, crop in zip(shape, crop_voxels, strict=True))
    return i, j, k


def draw_start(rng: np.random.Generator, shape: Voxels, crop_voxels: Voxels, jitter_voxels: Voxels) -> Voxels:
    """Uniform within the volume along axes that the crop does not cover; along the others, centred and shifted.

    Along an axis of one voxel (an image's) nothing is shifted: there would be nothing left.
    """
    uniform = rng.random(3)
    centre = centred_start(shape, crop_voxels)
    start = []
    for axis in range(3):
        room = shape[axis] - crop_voxels[axis]
        start.append(
            int(uniform[axis] * (room + 1)) if room > 0 else centre[axis] + jitter_voxels[axis] * (shape[axis] > 1)
        )
    return start[0], start[1], start[2]


def hide_sequences(
    rng: np.random.Generator, acquired: NDArray[np.bool_], probability: float, *, at_most: int
) -> NDArray[np.bool_]:
    """Hide each acquired sequence with `probability`, then all but `at_most` drawn at random; one always stays."""
    chance = rng.random(len(acquired))
    lots = np.where(acquired, chance, -1.0)
    # A hidden sequence has a low lot, so those that stay are also the first to be kept by number.
    kept = acquired & (chance >= probability)
    if acquired.any() and not kept.any():
        kept[np.argmax(lots)] = True
    rank = np.argsort(np.argsort(-lots))
    return kept & (rank < at_most)


def crop_affine(affine: NDArray[np.float64], start: Voxels) -> NDArray[np.float64]:
    """Affine of the crop whose voxel (0, 0, 0) is the volume's voxel `start`."""
    moved = np.array(affine, dtype=np.float64)
    moved[:3, 3] = to_world(moved, np.asarray(start))
    return moved


def clear_outside(crop: NDArray[np.float32], start: Voxels, shape: Voxels) -> None:
    """Set to zero, in place, the voxels of a crop (i, j, k) that lie outside a volume of `shape`."""
    for axis in range(3):
        along = np.moveaxis(crop, axis, 0)
        along[: max(0, -start[axis])] = 0
        along[max(0, shape[axis] - start[axis]) :] = 0
