"""Batches side by side are the same studies in one record, and what cannot stand side by side is refused."""

from dataclasses import replace

import pytest
import torch

from tomoglot.batches.batch import Batch, stack


def batch(*studies: str, **changes) -> Batch:
    n = len(studies)
    values = {
        "volumes": torch.randn(n, 2, 3, 3, 3),
        "acquired": torch.rand(n, 2) > 0.5,
        "sequences": ("t1w", "flair"),
        "affine": torch.randn(n, 4, 4),
        "studies": studies,
        "subjects": torch.arange(n),
        "reports": tuple(f"Report of {study}." for study in studies),
        "labels": torch.rand(n, 1).round(),
        "labelled": torch.rand(n, 1) > 0.5,
        "findings": ("mass",),
        "masks": torch.zeros(n, 3, 3, 3, dtype=torch.int64),
    }
    return Batch(**(values | changes))


def test_stacked_batches_keep_all_that_is_known_of_each_study_in_order():
    first, second = batch("a", "b"), batch("c", masks=None)
    both = stack([first, second])
    assert both.studies == ("a", "b", "c") and both.reports == (*first.reports, *second.reports)
    for name in ("volumes", "acquired", "affine", "subjects", "labels", "labelled"):
        assert torch.equal(getattr(both, name)[:2], getattr(first, name))
        assert torch.equal(getattr(both, name)[2:], getattr(second, name))
    assert both.masks is None and both.tokens is None and len(both) == 3


def test_batches_of_other_sequences_or_findings_and_no_batch_are_refused():
    first = batch("a")
    for others in ([], [first, replace(first, findings=("oedema",))], [first, replace(first, sequences=("a", "b"))]):
        with pytest.raises(ValueError, match="same sequences and findings"):
            stack(others)
