"""Dice and surface distances beside their slow definitions, and boxes whose distances one can say."""

import itertools

import numpy as np
import pytest

from tomoglot.tasks.scores.surfaces import dice, hd95_mm, nsd, surface_distances_mm

SPACING = (1.0, 2.0, 1.5)


def blobs(seed, shape=(9, 8, 7)):
    rng = np.random.default_rng(seed)
    return rng.random(shape) < 0.15, rng.random(shape) < 0.15


def surface_in_words(region):
    voxels = []
    for voxel in itertools.product(*map(range, region.shape)):
        if not region[voxel]:
            continue
        for axis, step in itertools.product(range(3), (-1, 1)):
            other = list(voxel)
            other[axis] += step
            if not 0 <= other[axis] < region.shape[axis] or not region[tuple(other)]:
                voxels.append(voxel)
                break
    return np.array(voxels) * SPACING


@pytest.mark.parametrize("seed", range(4))
def test_surface_distances_are_their_slow_definition(seed):
    predicted, true = blobs(seed)
    if seed == 3:  # solid boxes too, whose inside is no surface
        predicted[:], true[:] = False, False
        predicted[0:5, 2:8, 1:6], true[2:8, 1:7, 2:7] = True, True
    ours, theirs = surface_in_words(predicted), surface_in_words(true)
    between = np.linalg.norm(ours[:, None] - theirs[None], axis=-1)
    found = surface_distances_mm(predicted, true, SPACING)
    np.testing.assert_allclose(np.sort(found[0]), np.sort(between.min(axis=1)))
    np.testing.assert_allclose(np.sort(found[1]), np.sort(between.min(axis=0)))
    expected = max(np.percentile(between.min(axis=1), 95), np.percentile(between.min(axis=0), 95))
    assert hd95_mm(*found) == pytest.approx(expected)
    within = (between.min(axis=1) <= 2).sum() + (between.min(axis=0) <= 2).sum()
    assert nsd(*found, tolerance_mm=2.0) == pytest.approx(within / sum(between.shape))


def test_a_box_moved_by_two_voxels_of_two_mm_is_four_mm_away():
    predicted, true = np.zeros((2, 12, 12, 12), dtype=bool)
    predicted[2:3, 2:8, 2:8], true[2:3, 4:10, 2:8] = True, True
    distances = surface_distances_mm(predicted, true, SPACING)
    assert max(part.max() for part in distances) == 4.0 and hd95_mm(*distances) == 4.0
    assert nsd(*distances, tolerance_mm=4.0) == 1 and nsd(*distances, tolerance_mm=1.0) < 0.8
    assert dice(predicted, true) == pytest.approx(4 / 6)


def test_equal_regions_are_perfect_and_empty_ones_are_refused():
    one = blobs(0)[0]
    assert dice(one, one) == 1 and hd95_mm(*surface_distances_mm(one, one, SPACING)) == 0
    assert np.isnan(dice(one & ~one, one & ~one))
    with pytest.raises(ValueError, match="both regions"):
        surface_distances_mm(one, one & ~one, SPACING)
