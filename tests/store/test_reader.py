"""A crop is a slice of the whole array, padded with zeros, and touches only its own chunks."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from tomoglot.store.plan import Plan
from tomoglot.store.reader import Store
from tomoglot.store.writer import write_store

STARTS = st.tuples(*[st.integers(-50, 50)] * 3)
SHAPES = st.tuples(*[st.integers(1, 48)] * 3)


@pytest.fixture(scope="module")
def store(store_path) -> Store:
    return Store.open(store_path)


def whole(store: Store, key: str, array: str = "volumes.zarr") -> np.ndarray:
    """All voxels, by the other library."""
    return zarr.open_array(store.path / "studies" / key / array, mode="r")[...]


def crop_in_words(voxels: np.ndarray, start, shape) -> np.ndarray:
    """The slow definition: pad the whole array on every side and slice it."""
    padded = np.pad(voxels, [(0, 0)] * (voxels.ndim - 3) + [(100, 100)] * 3)
    box = tuple(slice(100 + first, 100 + first + length) for first, length in zip(start, shape, strict=True))
    return padded[(..., *box)]


@settings(max_examples=60, deadline=None)
@given(start=STARTS, shape=SHAPES)
def test_a_crop_is_its_slow_definition(store, start, shape):
    row = store.rows[1]
    np.testing.assert_array_equal(
        store.read_crop(row, start, shape), crop_in_words(whole(store, row.key), start, shape)
    )
    np.testing.assert_array_equal(
        store.read_mask(row, start, shape), crop_in_words(whole(store, row.key, "mask.zarr"), start, shape)
    )


def test_tensorstore_reads_what_zarr_python_reads(store):
    for row in store.rows:
        np.testing.assert_array_equal(store.read_crop(row, (0, 0, 0), row.shape), whole(store, row.key))


def test_sequences_come_in_the_order_asked_and_a_missing_one_is_zero(store):
    row = next(row for row in store.rows if row.sequences == ("flair", "t1w"))
    voxels = whole(store, row.key)
    for start in ((0, 0, 0), (-3, 2, 20)):
        found = store.read_crop(row, start, (20, 20, 20), sequences=("t2w", "t1w", "flair"))
        assert not found[0].any()
        np.testing.assert_array_equal(found[1:], crop_in_words(voxels[::-1], start, (20, 20, 20)))
    full = next(row for row in store.rows if len(row.sequences) == 3)
    found = store.read_crop(full, (0, 0, 0), full.shape, sequences=("t2w", "flair"))
    np.testing.assert_array_equal(found, whole(store, full.key)[[2, 0]])


def test_an_unknown_sequence_an_empty_box_and_an_absent_mask_are_refused(store):
    row = store.rows[0]
    with pytest.raises(ValueError, match=r"'ct'; it has flair, t1w, t2w"):
        store.read_crop(row, (0, 0, 0), (4, 4, 4), sequences=("ct",))
    with pytest.raises(ValueError, match="at least one voxel"):
        store.read_crop(row, (0, 0, 0), (4, 0, 4))
    assert not row.has_mask
    with pytest.raises(ValueError, match="has no mask"):
        store.read_mask(row, (0, 0, 0), (4, 4, 4))


def test_many_crops_in_flight_are_the_crops_one_by_one(store):
    rng = np.random.default_rng(0)
    requests = [
        (store.rows[rng.integers(len(store.rows))], tuple(int(s) for s in rng.integers(-9, 30, 3)), (16, 17, 18))
        for _ in range(40)
    ]
    for found, (row, start, shape) in zip(store.read_crops(requests), requests, strict=True):
        np.testing.assert_array_equal(found, store.read_crop(row, start, shape))


def test_few_open_handles_read_as_well_as_many(store_path, store):
    frugal = Store.open(store_path, max_handles=1, cache_bytes=0)
    for row in (*store.rows, *store.rows):
        np.testing.assert_array_equal(
            frugal.read_crop(row, (1, 2, 3), (9, 9, 9)), store.read_crop(row, (1, 2, 3), (9, 9, 9))
        )
    assert len(frugal._handles) == 1


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_a_crop_is_read_with_another_chunk_of_its_study_damaged(make_cohort, tmp_path, codec):
    out = tmp_path / "store"
    write_store(make_cohort(1, shape=(64, 64, 64)), out, Plan(codec=codec))
    row = Store.open(out).rows[0]
    shard = next(path for path in (out / "studies" / row.key / "volumes.zarr" / "c").rglob("*") if path.is_file())
    true = whole(Store.open(out), row.key)
    content = bytearray(shard.read_bytes())
    # The first chunk written is the first in the file; its index is at the end.
    content[100] ^= 1
    shard.write_bytes(bytes(content))
    store = Store.open(out)
    corners = [(i, j, k) for i in (0, 32) for j in (0, 32) for k in (0, 32)]
    damaged = []
    for corner in corners:
        try:
            found = store.read_crop(row, corner, (32, 32, 32), sequences=("t1w",))
        except ValueError as error:
            assert "damaged" in str(error)
            assert str(tmp_path) not in str(error)
            damaged.append(corner)
        else:
            np.testing.assert_array_equal(found, crop_in_words(true[[1]], corner, (32, 32, 32)))
    assert len(damaged) == 1


def test_rows_are_selected_by_split(store):
    assert sum(len(store.select(name)) for name in {row.split for row in store.rows}) == len(store.rows)
    assert store.select(None) == list(store.rows)
    with pytest.raises(ValueError, match="this store has no split 'nowhere'"):
        store.select("nowhere")


def test_what_is_not_a_store_or_has_a_damaged_table_is_refused(store_path, tmp_path):
    with pytest.raises(ValueError, match="not a store"):
        Store.open(tmp_path)
    for name in ("plan.json", "split.json", "catalogue.parquet", "store.json"):
        copy = tmp_path / name.split(".")[0]
        shutil.copytree(store_path, copy)
        content = bytearray(Path(copy / name).read_bytes())
        content[len(content) // 2] ^= 4
        (copy / name).write_bytes(bytes(content))
        with pytest.raises(ValueError, match=name):
            Store.open(copy)


@settings(max_examples=20, deadline=None)
@given(start=STARTS, shape=SHAPES)
def test_outside_a_ct_there_is_air_and_not_water(ct_store, start, shape):
    row = ct_store.rows[0]
    found = ct_store.read_crop(row, start, shape)
    padded = np.pad(whole(ct_store, row.key), [(0, 0)] + [(100, 100)] * 3, constant_values=-1000)
    box = tuple(slice(100 + first, 100 + first + length) for first, length in zip(start, shape, strict=True))
    np.testing.assert_array_equal(found, padded[(..., *box)])


def test_a_sequence_that_a_ct_study_lacks_is_zero_as_everywhere(ct_store):
    row = next(row for row in ct_store.rows if "t2w" not in row.sequences)
    assert not ct_store.read_crop(row, (-9, 0, 0), (12, 8, 8), sequences=("t2w",)).any()


@pytest.fixture(scope="module")
def ct_store(cohort, tmp_path_factory) -> Store:
    """The same studies read as if they were CT: what is padded is what counts here."""
    out = tmp_path_factory.mktemp("stores") / "ct"
    write_store(cohort, out, Plan(intensity="window"))
    return Store.open(out)
