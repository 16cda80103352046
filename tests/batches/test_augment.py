"""Augmentation is drawn first, as numbers, and applied after."""

import numpy as np
import pytest

from tomoglot.batches.augment import Augment, Drawn, apply, draw, flip, flip_affine
from tomoglot.geometry import to_world


def volumes():
    rng = np.random.default_rng(0)
    return (rng.normal(size=(2, 5, 4, 3)) * (rng.random((2, 5, 4, 3)) < 0.6)).astype(np.float32)


def test_nothing_is_changed_by_default():
    drawn = draw(np.random.default_rng(0), Augment.Config(), channels=2)
    assert np.array_equal(apply(volumes(), drawn), volumes())


def test_what_was_drawn_can_be_replayed():
    config = Augment.Config(flip_probability=(0.5, 0.5, 0.5), scale=0.3, shift=0.3, gamma=0.3, noise=0.3)
    drawn = draw(np.random.default_rng(3), config, channels=2)
    again = draw(np.random.default_rng(3), config, channels=2)
    assert drawn == again
    assert np.array_equal(apply(volumes(), drawn), apply(volumes(), again))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_flip_keeps_every_voxel_at_its_world_position(axis):
    flips = tuple(axis == other for other in range(3))
    affine = np.array([[0, -2, 0, 10], [1.5, 0, 0, -20], [0, 0, 3, 5], [0, 0, 0, 1.0]])
    before, after = volumes(), apply(volumes(), Drawn(flips=flips))
    turned = flip_affine(affine, before.shape[1:], flips)
    voxel = np.array([1, 2, 0])
    mirrored = voxel.copy()
    mirrored[axis] = before.shape[axis + 1] - 1 - voxel[axis]
    assert np.array_equal(after[:, *mirrored], before[:, *voxel])
    np.testing.assert_allclose(to_world(turned, mirrored), to_world(affine, voxel))
    assert np.array_equal(flip(before[0], flips), after[0])


def test_scale_shift_and_gamma_are_their_definitions_on_the_foreground_alone():
    before = volumes()
    drawn = Drawn(scale=(1.2, 1.0), shift=(0.5, 0.0), gamma=(0.8, 1.0), noise=(0.0, 0.0))
    after = apply(volumes(), drawn)
    values = before[0][before[0] != 0].astype(np.float64)
    low, high = values.min(), values.max()
    expected = (((values - low) / (high - low)) ** 0.8 * (high - low) + low) * 1.2 + 0.5
    np.testing.assert_allclose(after[0][before[0] != 0], expected, atol=1e-5)
    assert (after[0][before[0] == 0] == 0).all()
    assert np.array_equal(after[1], before[1])


def test_noise_has_the_drawn_spread_and_leaves_the_background():
    flat = np.ones((1, 40, 40, 40), np.float32)
    flat[:, :10] = 0
    noisy = apply(flat.copy(), Drawn(noise=(0.2,), noise_seed=4))
    assert (noisy[:, :10] == 0).all()
    assert abs(noisy[:, 10:].std() - 0.2) < 0.01 and abs(noisy[:, 10:].mean() - 1) < 0.01


def test_the_noise_of_a_channel_does_not_depend_on_the_other_channels():
    drawn = Drawn(noise=(0.2, 0.3), noise_seed=4)
    alone = volumes()
    alone[0] = 0
    assert np.array_equal(apply(alone, drawn)[1], apply(volumes(), drawn)[1])


def test_draws_stay_within_what_was_asked():
    config = Augment.Config(
        flip_probability=(1.0, 0.0, 0.5), jitter_voxels=3, scale=0.1, shift=0.2, gamma=0.5, noise=0.4
    )
    rng = np.random.default_rng(0)
    drawn = [draw(rng, config, channels=3) for _ in range(300)]
    assert all(each.flips[:2] == (True, False) for each in drawn)
    assert 0.4 < np.mean([each.flips[2] for each in drawn]) < 0.6
    assert {step for each in drawn for step in each.jitter_voxels} == set(range(-3, 4))
    for name, low, high in (("scale", 0.9, 1.1), ("shift", -0.2, 0.2), ("gamma", 1 / 1.5, 1.5), ("noise", 0.0, 0.4)):
        values = np.array([getattr(each, name) for each in drawn])
        assert values.shape == (300, 3) and low <= values.min() and values.max() <= high
        assert values.max() - values.min() > 0.9 * (high - low)


def test_switching_one_part_on_leaves_the_other_draws_alone():
    plain, noisy = (
        draw(np.random.default_rng(0), Augment.Config(scale=0.3, noise=noise), channels=2) for noise in (0.0, 0.5)
    )
    assert plain.scale == noisy.scale and plain.noise != noisy.noise


def test_noise_differs_from_sample_to_sample():
    one, other = (apply(volumes(), Drawn(noise=(0.2, 0.2), noise_seed=seed)) for seed in (1, 2))
    assert not np.array_equal(one, other)
