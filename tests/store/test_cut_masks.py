"""Masks that the field cuts are counted, said, and a field that would not cut them is named."""

from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tomoglot.cli.cohorts import _tell
from tomoglot.serve.terminal import describe
from tomoglot.store import layout
from tomoglot.store.catalogue import read_catalogue, study_digest
from tomoglot.store.conform import conform
from tomoglot.store.cut_masks import CutMasks
from tomoglot.store.inspect import summarise
from tomoglot.store.plan import Plan
from tomoglot.store.reader import Store
from tomoglot.store.writer import write_store
from tomoglot.studies.curate import Examined
from tomoglot.studies.study import Study, Volume

edges = st.tuples(*[st.integers(1, 16)] * 3)
places = st.tuples(*[st.integers(0, 11)] * 3)


def study(body: list[tuple[int, int]], marked: np.ndarray) -> Examined:
    """A volume with signal in a box, and a mask of it."""
    signal = np.zeros(marked.shape, np.int16)
    signal[tuple(slice(low, high) for low, high in body)] = 7
    volume, mask = Volume(voxels=signal, affine=np.eye(4)), Volume(voxels=marked.astype(np.uint8), affine=np.eye(4))
    return Examined(study=Study(subject="a", study="1"), volumes={"t1w": volume}, mask=mask)


@settings(deadline=None, max_examples=40)
@given(st.tuples(places, places), st.lists(places, min_size=1, max_size=4), edges)
def test_the_share_kept_is_counted_and_the_field_named_holds_all_and_is_no_larger_than_it_must(corners, marks, field):
    body = [(min(pair), max(pair) + 1) for pair in zip(*corners, strict=True)]
    marked = np.zeros((12, 12, 12))
    marked[tuple(np.transpose(marks))] = 3
    examined = study(body, marked)
    # A field that misses the signal is refused for that; this is of masks.
    plan = Plan(field_voxels=tuple(max(edge, 2) for edge in field))
    found = conform(examined, plan)
    assert found.mask is not None
    assert found.mask_field is not None
    assert found.mask_kept == pytest.approx(np.count_nonzero(found.mask) / np.count_nonzero(marked))
    whole = conform(examined, Plan(field_voxels=found.mask_field))
    assert whole.mask_kept == 1.0
    for axis, edge in enumerate(found.mask_field):
        # Symmetric about the middle: one voxel less may do where the middle is off the grid, two never.
        less = [*found.mask_field]
        less[axis] = edge - 2
        if edge > 2:
            smaller = conform(examined, Plan(field_voxels=(less[0], less[1], less[2])))
            assert smaller.mask_kept is not None
            assert smaller.mask_kept < 1.0


def test_without_a_field_or_without_a_mark_nothing_is_cut():
    marked = np.zeros((12, 12, 12))
    assert conform(study([(2, 9)] * 3, marked), Plan(field_voxels=(4, 4, 4))).mask_kept is None
    marked[0, 0, 0] = 1
    assert conform(study([(2, 9)] * 3, marked), Plan()).mask_kept == 1.0
    unmarked = replace(study([(2, 9)] * 3, marked), mask=None)
    assert conform(unmarked, Plan(field_voxels=(4, 4, 4))).mask_kept is None


def test_a_field_that_cuts_is_said_with_one_that_does_not_and_that_one_is_silent(make_cohort, tmp_path: Path, capsys):
    cohort = make_cohort(3)
    done = write_store(cohort, tmp_path / "store", Plan(field_voxels=(16, 44, 36)), look=False)
    assert done.cut is not None
    assert (done.cut.num_cut, done.cut.num_known) == (2, 2)
    assert done.cut.lost == pytest.approx(0.5, abs=0.03)  # 16 of 32 voxels with signal along i
    _tell(done, tmp_path / "raw", tmp_path / "store")
    i, j, k = done.cut.field_voxels
    assert (
        "WARNING: the field cuts the masks of 2 of 2 studies that have one, on average 49% of a mask"
        in capsys.readouterr().err
    )
    store = Store.open(tmp_path / "store")
    assert any(f"a field of {i},{j},{k} holds all masks" in str(line) for line in describe(summarise(store), ()))

    wider = write_store(cohort, tmp_path / "wider", Plan(field_voxels=done.cut.field_voxels), look=False)
    assert wider.cut is None
    _tell(wider, tmp_path / "raw", tmp_path / "wider")
    assert "WARNING" not in capsys.readouterr().err


def test_a_voxel_at_the_edge_is_no_cut(store_path):
    rows = [row.model_copy(update={"mask_kept": 0.96, "mask_field": (9, 9, 9)}) for row in Store.open(store_path).rows]
    assert CutMasks.of(rows) is None
    assert CutMasks.of([*rows, rows[0].model_copy(update={"mask_kept": 0.94})]) is not None


def test_a_catalogue_of_before_is_read_is_the_same_content_and_says_nothing(make_cohort, tmp_path: Path):
    done = write_store(make_cohort(2), tmp_path / "store", Plan(field_voxels=(16, 44, 36)), look=False)
    assert done.cut is not None
    now, before = tmp_path / "store" / layout.CATALOGUE_FILE, tmp_path / "before.parquet"
    duckdb.sql(f"COPY (SELECT * EXCLUDE (mask_kept, mask_field) FROM '{now}') TO '{before}' (FORMAT parquet)")
    rows, old = read_catalogue(now), read_catalogue(before)
    assert CutMasks.of(rows) == done.cut
    assert CutMasks.of(old) is None
    said, told = ([study_digest(row.model_dump(mode="json"), {"volumes": "a"}) for row in its] for its in (rows, old))
    assert said == told
