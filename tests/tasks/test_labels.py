"""Few labels: subjects are drawn whole, small shares lie within large ones, and other splits are left alone."""

from types import SimpleNamespace

import numpy as np
import pytest

from tomoglot.store.catalogue import StudyRow
from tomoglot.store.plan import Plan
from tomoglot.tasks.labels import PartOfStore, fewer_labels, keep_subjects


def rows(split: str, subjects: int) -> list[StudyRow]:
    """Two studies a subject."""
    return [
        StudyRow.model_construct(key=f"{split}{at}-{visit}", subject=f"{split}{at}", split=split, has_mask=at % 2 == 0)
        for at in range(subjects)
        for visit in range(2)
    ]


STORE = SimpleNamespace(
    rows=(*rows("train", 30), *rows("val", 5), *rows("test", 5)),
    sequences=("t1w",),
    findings=("mass",),
    plan=Plan(),
    read_crop=lambda row, start, shape, *, sequences: np.full((len(sequences), *shape), int(row.key[-1]), np.int16),
    read_mask=lambda row, start, shape: np.full(shape, int(row.key[-1]), np.uint8),
)


def test_smaller_fractions_lie_within_larger_ones_and_keep_subjects_whole() -> None:
    subjects = np.arange(90) // 2
    few, more = (keep_subjects(subjects, fraction=part, seed=3) for part in (0.2, 0.6))
    assert few.sum() == 18 and more.sum() == 54 and (few <= more).all()
    assert (few[::2] == few[1::2]).all()
    assert not np.array_equal(few, keep_subjects(subjects, fraction=0.2, seed=4))
    for wrong in (0.0, 1.5):
        with pytest.raises(ValueError, match="label_fraction"):
            keep_subjects(subjects, fraction=wrong, seed=0)


def test_a_store_with_fewer_labels_loses_studies_of_that_split_only() -> None:
    part = fewer_labels(STORE, fraction=0.1, seed=0)
    assert isinstance(part, PartOfStore)
    assert sum(row.split == "train" for row in part.rows) == 6
    assert [row for row in part.rows if row.split != "train"] == [row for row in STORE.rows if row.split != "train"]
    assert (part.sequences, part.findings, part.plan) == (("t1w",), ("mass",), Plan())
    visit = int(part.rows[1].key[-1])
    assert (part.read_crop(part.rows[1], (0, 0, 0), (1, 2, 3), sequences=["t1w"]) == np.full((1, 1, 2, 3), visit)).all()
    assert (part.read_mask(part.rows[1], (0, 0, 0), (1, 2, 3)) == np.full((1, 2, 3), visit)).all()


def test_all_labels_leave_the_store_as_it_is_and_unusable_studies_are_not_counted() -> None:
    assert fewer_labels(STORE, fraction=1.0, seed=0) is STORE
    usable = [row for row in STORE.rows if row.split == "train" and row.has_mask]
    part = fewer_labels(STORE, fraction=0.2, seed=0, usable=usable)
    kept = [row for row in part.rows if row.split == "train"]
    assert len(kept) == 6 and all(row.has_mask for row in kept)
    with pytest.raises(ValueError, match="no study to learn from"):
        fewer_labels(STORE, fraction=0.2, seed=0, usable=[])
