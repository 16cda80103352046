"""Voxel and world stay together through every turn and every change of spacing."""

import itertools

import numpy as np
import pytest

from tomoglot.geometry import Grid, regular_grid, resample, spacing_mm, to_ras, to_world


def ramp(shape: tuple[int, int, int], affine: np.ndarray, axis: int) -> np.ndarray:
    """A volume whose value is its world position along one axis."""
    voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return to_world(affine, voxels)[..., axis]


AFFINE = np.array([[2.0, 0, 0, -11], [0, 1.5, 0, 7], [0, 0, 3.0, -20], [0, 0, 0, 1]])


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", list(itertools.product((1, -1), repeat=3)))
def test_all_48_orientations_come_to_one_array(order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    volume = np.arange(2 * 3 * 4).reshape(2, 3, 4).astype(np.int16)
    turned = volume.transpose(order)[:: signs[0], :: signs[1], :: signs[2]]
    to_volume = np.zeros((4, 4))
    to_volume[3, 3] = 1
    for new, old in enumerate(order):
        to_volume[old, new] = signs[new]
        to_volume[old, 3] += (volume.shape[old] - 1) if signs[new] < 0 else 0
    canonical, affine = to_ras(turned, AFFINE @ to_volume)
    np.testing.assert_array_equal(canonical, volume)
    np.testing.assert_allclose(affine, AFFINE)


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("step", [(1.0, 1.0, 1.0), (2.0, 2.0, 2.0), (4.0, 3.0, 5.0)])
def test_a_resampled_ramp_still_gives_world_positions(axis: int, step: tuple[float, float, float]) -> None:
    source = Grid((20, 22, 18), AFFINE)
    grid = regular_grid(source, step)
    assert spacing_mm(grid.affine) == pytest.approx(step)
    result = resample(ramp(source.shape, AFFINE, axis), AFFINE, grid)
    inner = (slice(4, -4),) * 3
    np.testing.assert_allclose(result[inner], ramp(grid.shape, grid.affine, axis)[inner], atol=0.05)


def test_a_resampled_grid_keeps_its_centre_and_covers_the_field() -> None:
    source = Grid((20, 22, 18), AFFINE)
    grid = regular_grid(source, (4.0, 4.0, 4.0))
    np.testing.assert_allclose(grid.centre_mm(), source.centre_mm())
    assert all(n * 4.0 >= m * s - 1e-6 for n, m, s in zip(grid.shape, source.shape, source.spacing_mm, strict=True))


def test_the_same_grid_is_not_interpolated() -> None:
    voxels = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)
    np.testing.assert_array_equal(resample(voxels, AFFINE, Grid((5, 6, 7), AFFINE)), voxels)


def test_fine_structure_does_not_alias() -> None:
    """A checkerboard of one voxel must become its mean, not a pattern, when voxels become four times larger."""
    voxels = np.indices((32, 32, 32)).sum(axis=0) % 2 * 100.0
    result = resample(voxels, np.eye(4), regular_grid(Grid((32, 32, 32), np.eye(4)), (4.0, 4.0, 4.0)))
    assert np.abs(result[2:-2, 2:-2, 2:-2] - 50).max() < 5


def test_a_mask_is_read_by_the_nearest_voxel() -> None:
    mask = np.zeros((8, 8, 8), dtype=np.uint8)
    mask[2:6, 2:6, 2:6] = 3
    result = resample(mask, np.eye(4), regular_grid(Grid((8, 8, 8), np.eye(4)), (1.3, 1.3, 1.3)), order=0)
    assert set(np.unique(result)) == {0.0, 3.0}
