"""A sample's crop lies where its affine says, whatever was drawn."""

import numpy as np
import pytest

from tomoglot.batches.augment import Augment
from tomoglot.batches.sample import Wanted, build_sample, centred_start, crop_affine, draw_start, hide_sequences
from tomoglot.geometry import to_world
from tomoglot.store.plan import Plan


def build(store, row, crop_voxels, *, seed=None, **wanted):
    out = np.full((3, *crop_voxels), np.nan, np.float32)
    mask = np.full(crop_voxels, 99, np.int16)
    sample = build_sample(
        store,
        row,
        Wanted(sequences=("t1w", "t2w", "flair"), crop_voxels=crop_voxels, **wanted),
        rng=None if seed is None else np.random.default_rng(seed),
        out=out,
        mask_out=mask,
    )
    return sample, out, mask


def world_table(volume, affine):
    """World position (rounded) to value, of the voxels that are not zero."""
    places = np.argwhere(volume != 0)
    world = np.round(to_world(affine, places), 3)
    return {tuple(place): volume[tuple(voxel)] for place, voxel in zip(world.tolist(), places, strict=True)}


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("crop_voxels", [(3, 3, 2), (6, 5, 4), (9, 3, 7)])
def test_every_voxel_of_a_crop_is_at_its_world_position(store, crop_voxels, seed):
    row = store.rows[0]
    augment = Augment.Config(flip_probability=(0.5, 0.5, 0.5), jitter_voxels=2)
    sample, out, mask = build(store, row, crop_voxels, seed=seed, augment=augment)
    whole_sample, whole, whole_mask = build(store, row, row.shape)
    for crop, volume in ((out[0], whole[0]), (mask, whole_mask)):
        expected = world_table(volume, whole_sample.affine)
        found = world_table(crop, sample.affine)
        assert found and found.items() <= expected.items()


def test_the_whole_field_keeps_the_rows_affine(store):
    sample, _, _ = build(store, store.rows[0], store.rows[0].shape)
    np.testing.assert_array_equal(sample.affine, np.asarray(store.rows[0].affine))


def test_a_crop_that_starts_before_the_volume_has_its_corner_outside_it():
    affine = np.array([[0, -2, 0, 10], [1.5, 0, 0, -20], [0, 0, 3, 5], [0, 0, 0, 1.0]])
    moved = crop_affine(affine, (-2, 1, 3))
    np.testing.assert_allclose(to_world(moved, np.zeros(3)), [10 - 2 * 1, -20 - 2 * 1.5, 5 + 3 * 3])
    assert affine[0, 3] == 10


def test_starts_cover_the_volume_and_never_leave_it():
    rng = np.random.default_rng(0)
    starts = [draw_start(rng, (8, 5, 4), (5, 5, 6), (1, 0, -1)) for _ in range(200)]
    assert {start[0] for start in starts} == {0, 1, 2, 3}
    assert {start[1:] for start in starts} == {(0, -2)}


def test_a_larger_crop_has_the_volume_in_its_middle():
    assert centred_start((6, 5, 4), (10, 5, 2)) == (-2, 0, 1)


def test_voxels_outside_the_volume_are_zero_even_where_stored_zero_is_not_air(store_of, row_of):
    store = store_of([row_of(0)], Plan(intensity="window", window_hu=(-100.0, 100.0)))
    _, out, _ = build(store, store.rows[0], (8, 5, 4))
    assert (out[0, 0] == 0).all() and (out[0, -1] == 0).all()
    assert (out[0, 1:-1] >= 0.5).all()


def test_a_jitter_of_a_whole_field_is_a_shift_with_zeros(store):
    row = store.rows[0]
    moves = set()
    for seed in range(30):
        sample, out, _ = build(store, row, row.shape, seed=seed, augment=Augment.Config(jitter_voxels=1))
        start = np.linalg.solve(np.asarray(row.affine), sample.affine)[:3, 3].round().astype(int)
        moves.update(np.abs(start).tolist())
        if start[0] == 1:
            assert (out[:, -1] == 0).all()
    assert moves == {0, 1}


def test_the_same_generator_gives_the_same_sample(store):
    augment = Augment.Config(noise=0.5, gamma=0.5, scale=0.5)
    once, again, other = (build(store, store.rows[0], (3, 3, 3), seed=seed, augment=augment)[1] for seed in (1, 1, 2))
    assert np.array_equal(once, again) and not np.array_equal(once, other)


def test_hiding_leaves_at_least_one_and_invents_none():
    rng = np.random.default_rng(0)
    acquired = np.array([True, False, True, True])
    kept = np.array([hide_sequences(rng, acquired, 0.5, at_most=9) for _ in range(2000)])
    assert kept.any(1).all() and not kept[:, 1].any()
    # Hidden half of the time, but for the one in eight draws in which all three would be, of which one third stays.
    np.testing.assert_allclose(kept[:, [0, 2, 3]].mean(0), 0.5 + 1 / 24, atol=0.04)
    assert (hide_sequences(rng, acquired, 0.0, at_most=9) == acquired).all()


def test_at_most_so_many_sequences_are_shown_each_as_often_as_the_others():
    rng = np.random.default_rng(0)
    acquired = np.array([True, False, True, True, True])
    kept = np.array([hide_sequences(rng, acquired, 0.0, at_most=2) for _ in range(2000)])
    assert (kept.sum(1) == 2).all() and not kept[:, 1].any()
    np.testing.assert_allclose(kept[:, [0, 2, 3, 4]].mean(0), 0.5, atol=0.04)
    assert all(hide_sequences(rng, acquired, 0.9, at_most=1).sum() == 1 for _ in range(50))


def test_a_hidden_sequence_is_not_read(store, monkeypatch):
    asked = []
    read = store.read_crop
    monkeypatch.setattr(
        store, "read_crop", lambda *place, sequences: (asked.append(sequences), read(*place, sequences=sequences))[1]
    )
    sample, out, _ = build(store, store.rows[0], (3, 3, 3), seed=0, drop_sequence_probability=0.99)
    assert len(asked[0]) == sample.acquired.sum() == 1
    assert (out[~sample.acquired] == 0).all()
