"""Lesion by lesion: how many were found, and how well each was drawn. One large lesion must not hide ten small ones.

A lesion is a set of voxels that touch by face, edge or corner (26 neighbours).

- F1: a true lesion is found where all predicted lesions that touch it, taken together, have at least `least_iou` in
  common with it (intersection over union; 0.1 is PI-CAI's, Saha 2024); a predicted lesion is a false alarm where it
  touches no true one. F1 = found / (found + (missed + false) / 2). With 0 this is the rule of ISLES 2022, one voxel in
  common finds a lesion: measured here, it gives an F1 of 1 to a network that calls every voxel of the head.
- Dice (BraTS 2023, Saluja's evaluation): each true lesion against all predicted lesions that touch it, taken together;
  a missed lesion and a false alarm are a 0 each; the mean over true lesions and false alarms. Differs from the
  challenge: true lesions are not joined across small gaps, and none is left out for being small.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

TOUCHING = np.ones((3, 3, 3), dtype=bool)
LEAST_IOU = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class LesionScores:
    """Counts of lesions, the mean Dice over true lesions and false alarms, and F1; NaN where there is no lesion."""

    found: int
    missed: int
    false: int
    dice: float
    f1: float


def score_lesions(
    predicted: NDArray[np.bool_], true: NDArray[np.bool_], *, least_iou: float = LEAST_IOU
) -> LesionScores:
    """Compare two masks (i, j, k) lesion by lesion; `least_iou` is what it takes to find one."""
    drawn, num_drawn = ndimage.label(predicted, structure=TOUCHING)
    lesions, num_lesions = ndimage.label(true, structure=TOUCHING)
    # Row: true lesion, column: predicted lesion, value: voxels in common. Number 0 is the rest of the volume.
    pairs = lesions.ravel().astype(np.int64) * (num_drawn + 1) + drawn.ravel()
    common = np.bincount(pairs, minlength=(num_lesions + 1) * (num_drawn + 1)).reshape(num_lesions + 1, num_drawn + 1)
    sizes, drawn_sizes = common.sum(axis=1)[1:], common.sum(axis=0)[1:]
    common = common[1:, 1:]
    shared = common.sum(axis=1)
    # Voxels of a true lesion and of everything predicted that touches it.
    both = sizes + (common > 0) @ drawn_sizes
    found = int(((shared > 0) & (shared >= least_iou * (both - shared))).sum())
    false = int((common.sum(axis=0) == 0).sum())
    missed = num_lesions - found
    each = 2 * shared / both
    counted = num_lesions + false
    return LesionScores(
        found=found,
        missed=missed,
        false=false,
        dice=float(each.sum()) / counted if counted else float("nan"),
        f1=found / (found + (missed + false) / 2) if counted else float("nan"),
    )
