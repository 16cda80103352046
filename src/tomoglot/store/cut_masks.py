"""Masks that a plan's field cuts: what their reports and labels speak of is then not in the store."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np

from tomoglot.store.catalogue import StudyRow

# A mask loses a voxel or two at the edge of any field; a twentieth is a choice of the field.
LEAST_LOST = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class CutMasks:
    """Studies whose mask loses more than a twentieth to the field.

    `num_cut` of `num_known` with a marked voxel, the share of a mask that is `lost` (mean over `num_known`), and
    centred `field_voxels` (i, j, k), no smaller than the field is, that would hold every mask whole.
    """

    num_cut: int
    num_known: int
    lost: float
    field_voxels: tuple[int, int, int]

    @classmethod
    def of(cls, rows: Iterable[StudyRow]) -> Self | None:
        """Of a store's studies; None where no mask is cut. Studies that an older version wrote are not known."""
        known = [
            (row.mask_kept, np.maximum(row.mask_field, row.shape))
            for row in rows
            if row.mask_kept is not None and row.mask_field is not None
        ]
        num_cut = sum(kept < 1 - LEAST_LOST for kept, _ in known)
        if not num_cut:
            return None
        i, j, k = (int(edge) for edge in np.max([field for _, field in known], axis=0))
        lost = 1 - float(np.mean([kept for kept, _ in known]))
        return cls(num_cut=num_cut, num_known=len(known), lost=lost, field_voxels=(i, j, k))

    def __str__(self) -> str:
        i, j, k = self.field_voxels
        return (
            f"the field cuts the masks of {self.num_cut} of {self.num_known} studies that have one, on average "
            f"{self.lost:.0%} of a mask: what reports and labels speak of is not in the store; "
            f"a field of {i},{j},{k} holds all masks"
        )
