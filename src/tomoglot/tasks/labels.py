"""Learning from few labels: which subjects keep theirs, and a store that shows no other study of a split.

Subjects are drawn, not studies, in one order a seed: those of a smaller fraction lie within those of a larger one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tomoglot.batches.loader import StudySource
from tomoglot.batches.sample import Voxels
from tomoglot.store.catalogue import StudyRow
from tomoglot.store.plan import Plan
from tomoglot.studies.split import keep_subjects

__all__ = ["PartOfStore", "fewer_labels", "keep_subjects"]


@dataclass(frozen=True, slots=True, eq=False)
class PartOfStore:
    """A store of which only some rows are seen. Sequences and findings stay those of the whole store."""

    whole: StudySource
    rows: tuple[StudyRow, ...]

    @property
    def plan(self) -> Plan:
        """That of the whole store."""
        return self.whole.plan

    @property
    def sequences(self) -> tuple[str, ...]:
        """Those of the whole store."""
        return self.whole.sequences

    @property
    def findings(self) -> tuple[str, ...]:
        """Those of the whole store."""
        return self.whole.findings

    def read_crop(
        self, row: StudyRow, start: Voxels, shape: Voxels, *, sequences: Sequence[str] | None = None
    ) -> NDArray[np.int16]:
        """As the whole store does."""
        return self.whole.read_crop(row, start, shape, sequences=sequences)

    def read_mask(self, row: StudyRow, start: Voxels, shape: Voxels) -> NDArray[np.uint8]:
        """As the whole store does."""
        return self.whole.read_mask(row, start, shape)


def fewer_labels(
    store: StudySource, *, fraction: float, seed: int, split: str = "train", usable: Sequence[StudyRow] | None = None
) -> StudySource:
    """The store without the studies of `split` whose subjects do not keep their labels; other splits stay whole.

    `usable` are the rows of the split to count (those with a mask, say); others of the split are left out. The whole
    store is given back where nothing would be left out.

    Raises:
        ValueError: the fraction is not in (0, 1], or the split has no usable study.
    """
    rows = [row for row in store.rows if row.split == split] if usable is None else list(usable)
    if not rows:
        raise ValueError(f"split {split!r} holds no study to learn from")
    keep = keep_subjects(np.array([row.subject for row in rows]), fraction=fraction, seed=seed)
    kept = {row.key for row, its in zip(rows, keep, strict=True) if its}
    left = tuple(row for row in store.rows if row.split != split or row.key in kept)
    return store if len(left) == len(store.rows) else PartOfStore(store, left)
