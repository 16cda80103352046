"""One grid, one field, int16: world positions stay true and whole numbers stay exact."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tomoglot.geometry import to_world
from tomoglot.store.conform import Conformed, conform, cut, measure, to_int16
from tomoglot.store.plan import Plan
from tomoglot.studies.curate import Examined
from tomoglot.studies.study import Rejected, Series, Study, Volume

TURNS = [
    (order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1.0, -1.0), repeat=3)
]


def examined(volumes, mask=None) -> Examined:
    series = tuple(Series(sequence=name, path=Path(f"{name}.nii.gz")) for name in volumes)
    return Examined(study=Study(subject="s", study="1", series=series), volumes=volumes, mask=mask)


def brightest_mm(conformed: Conformed, sequence: int = 0) -> np.ndarray:
    place = np.unravel_index(np.argmax(conformed.voxels[sequence]), conformed.voxels[sequence].shape)
    return to_world(conformed.affine, np.array(place))


def turned_volume(order, signs) -> tuple[Volume, np.ndarray]:
    """Volume with one bright voxel whose axes run as `order` and `signs` say, and where that voxel is in mm."""
    rng = np.random.default_rng(1)
    voxels = np.zeros((11, 13, 9), dtype=np.int16)
    voxels[2:9, 3:10, 1:8] = rng.integers(1, 90, (7, 7, 7))
    voxels[7, 4, 6] = 1000
    affine = np.eye(4)
    for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
        affine[:3, axis] = 0
        affine[world, axis] = sign * (1.0, 1.5, 2.0)[axis]
    affine[:3, 3] = (-7.0, 12.0, 30.0)
    return Volume(voxels=voxels, affine=affine), to_world(affine, np.array([7, 4, 6]))


@pytest.mark.parametrize(("order", "signs"), TURNS)
def test_a_marked_voxel_stays_where_it_is_in_the_world_for_all_48_orientations(order, signs):
    volume, where_mm = turned_volume(order, signs)
    mask = Volume(voxels=(volume.voxels == 1000).astype(np.uint8), affine=volume.affine)
    found = conform(examined({"t1w": volume}, mask), Plan(field_voxels=(10, 12, 14)))
    assert found.voxels.shape == (1, 10, 12, 14)
    assert (np.diag(found.affine)[:3] > 0).all()
    np.testing.assert_allclose(brightest_mm(found), where_mm, atol=1e-9)
    assert found.mask is not None
    np.testing.assert_array_equal(found.mask == 1, found.voxels[0] == 1000)


def test_a_smooth_ball_stays_where_it_is_when_resampled():
    grid = np.stack(np.meshgrid(*[np.arange(24.0)] * 3, indexing="ij"), axis=-1)
    affine = np.diag([-1.0, 1.2, 1.5, 1.0])
    affine[:3, 3] = (9.0, -3.0, 4.0)
    ball = np.exp(-((grid - (15, 9, 12)) ** 2).sum(-1) / 12).astype(np.float32)
    found = conform(examined({"t1w": Volume(voxels=ball, affine=affine)}), Plan(spacing_mm=(2.0, 2.0, 2.0)))
    np.testing.assert_allclose(np.diag(found.affine)[:3], 2.0)
    weight = found.voxels[0].astype(float)
    places = np.stack(np.meshgrid(*[np.arange(n) for n in weight.shape], indexing="ij"), axis=-1)
    centre = to_world(found.affine, (places * weight[..., None]).sum((0, 1, 2)) / weight.sum())
    np.testing.assert_allclose(centre, to_world(affine, np.array([15, 9, 12])), atol=0.05)


def test_series_are_resampled_on_the_grid_of_the_finest():
    fine, where_mm = turned_volume((0, 1, 2), (1.0, 1.0, 1.0))
    coarse_affine = np.diag([4.0, 4.0, 4.0, 1.0])
    coarse_affine[:3, 3] = fine.affine[:3, 3]
    coarse = Volume(voxels=np.arange(216, dtype=np.float32).reshape(6, 6, 6) + 1, affine=coarse_affine)
    found = conform(examined({"flair": coarse, "t1w": fine}), Plan())
    assert found.sequences == ("flair", "t1w")
    assert found.voxels.shape == (2, *fine.voxels.shape)
    np.testing.assert_array_equal(found.voxels[1], fine.voxels)
    np.testing.assert_allclose(brightest_mm(found, 1), where_mm)


def test_the_field_is_centred_on_the_foreground_so_that_studies_line_up():
    voxels = np.zeros((30, 30, 30), dtype=np.int16)
    voxels[20:26, 2:8, 10:20] = 5
    found = conform(examined({"t1w": Volume(voxels=voxels, affine=np.eye(4))}), Plan(field_voxels=(12, 12, 12)))
    hit = np.argwhere(found.voxels[0])
    np.testing.assert_array_equal(hit.min(axis=0), (3, 3, 1))
    np.testing.assert_array_equal(hit.max(axis=0), (8, 8, 10))


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.int32, (3, 4, 2), elements=st.integers(-32768, 32767)))
def test_whole_numbers_that_fit_are_stored_exactly(real):
    for kind in (np.int32, np.float32, np.float64):
        stored, scale = to_int16(real.astype(kind))
        assert scale == 1.0
        np.testing.assert_array_equal(stored, real)


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(np.float64, (3, 3, 3), elements=st.floats(-1e6, 1e6, allow_subnormal=False)))
def test_other_numbers_come_back_within_half_a_step_and_zero_stays_zero(real):
    if 0 < np.abs(real).max() < 1e-300:
        return
    stored, scale = to_int16(real)
    assert np.abs(stored * scale - real).max() <= scale * 0.5000001
    assert (stored[real == 0] == 0).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_voxel_that_is_no_number_is_refused(value):
    with pytest.raises(Rejected, match="non-finite"):
        to_int16(np.array([[[1.0, value]]]))


def test_statistics_are_of_the_real_values_of_the_foreground():
    rng = np.random.default_rng(0)
    real = np.where(rng.random((8, 8, 8)) < 0.5, 0.0, rng.normal(3.0, 1.0, (8, 8, 8)))
    stored, scale = to_int16(real)
    found = measure(stored, scale, Plan())
    signal = real[real != 0]
    assert found.mean == pytest.approx(signal.mean(), abs=scale)
    assert found.std == pytest.approx(signal.std(), abs=scale)
    assert found.percentiles["95"] == pytest.approx(np.percentile(signal, 95), abs=scale)
    assert found.foreground == pytest.approx((real != 0).mean(), abs=1e-3)


def test_a_series_without_signal_in_the_field_is_dropped_and_said():
    signal = np.zeros((20, 20, 20), dtype=np.int16)
    signal[2:6, 2:6, 2:6] = 3
    outside = np.zeros((20, 20, 20), dtype=np.int16)
    outside[19, 19, 19] = 3
    volumes = {
        "t1w": Volume(voxels=outside, affine=np.eye(4)),
        "flair": Volume(voxels=signal, affine=np.eye(4)),
    }
    found = conform(examined(volumes), Plan(field_voxels=(8, 8, 8)))
    assert found.sequences == ("flair",)
    assert [(row.sequence, row.reason) for row in found.rejected] == [("t1w", "empty-in-field")]


@given(st.tuples(*[st.integers(-9, 9)] * 3), st.tuples(*[st.integers(1, 9)] * 3))
def test_cut_is_padding_and_slicing(start, shape):
    volume = np.arange(1, 4 * 5 * 6 + 1).reshape(4, 5, 6)
    padded = np.pad(volume, 20)
    box = tuple(slice(20 + first, 20 + first + length) for first, length in zip(start, shape, strict=True))
    np.testing.assert_array_equal(cut(volume, start, shape), padded[box])


def test_the_edge_of_a_brain_only_image_keeps_its_brightness_when_resampled():
    """Mixed with the zeros round it, tissue at the edge would turn dark: a rim that networks learn by heart."""
    places = np.stack(np.meshgrid(*[np.arange(40.0)] * 3, indexing="ij"), axis=-1)
    ball = (np.linalg.norm(places - 19.5, axis=-1) < 15).astype(np.float32) * 700
    found = conform(examined({"t1w": Volume(voxels=ball, affine=np.eye(4))}), Plan(spacing_mm=(1.7, 1.7, 1.7)))
    signal = found.voxels[0][found.voxels[0] != 0] * found.intensities["t1w"].scale
    np.testing.assert_allclose(signal, 700, rtol=1e-3)
    # The rim is neither eaten away nor swollen: the ball keeps its volume.
    assert signal.size * 1.7**3 == pytest.approx((ball > 0).sum(), rel=0.05)


def test_in_hounsfield_units_zero_is_water_and_is_interpolated_like_any_value():
    halves = np.zeros((20, 20, 20), dtype=np.int16)
    halves[10:] = 100
    ct = Plan(intensity="window", spacing_mm=(1.5, 1.5, 1.5))
    found = conform(examined({"ct": Volume(voxels=halves, affine=np.eye(4))}), ct)
    real = found.voxels[0] * found.intensities["ct"].scale
    between = real[:, 5, 5]
    assert ((between > 5) & (between < 95)).any()


def test_where_a_ct_has_no_voxel_there_is_air():
    water = np.full((6, 6, 6), 1, dtype=np.int16)
    found = conform(
        examined({"ct": Volume(voxels=water, affine=np.eye(4))}), Plan(intensity="window", field_voxels=(10, 6, 6))
    )
    assert (found.voxels[0][[0, 1, 8, 9]] == -1000).all()
    assert (found.voxels[0][2:8] == 1).all()


def body_in_air(shape=(30, 30, 30)) -> np.ndarray:
    """A CT of a simulated body off the middle: noisy air round it, exactly 0 HU in its core, bone at its rim."""
    rng = np.random.default_rng(3)
    voxels = np.round(rng.normal(-1000, 12, shape)).astype(np.int16)
    voxels[20:26, 2:8, 10:20] = 300
    voxels[21:25, 3:7, 11:19] = 0
    return voxels


def test_the_field_of_a_ct_is_centred_on_the_body_although_its_air_is_not_zero():
    volume = Volume(voxels=body_in_air(), affine=np.eye(4))
    found = conform(examined({"ct": volume}), Plan(intensity="window", field_voxels=(12, 12, 12)))
    hit = np.argwhere(found.voxels[0] > -500)
    np.testing.assert_array_equal(hit.min(axis=0), (3, 3, 1))
    np.testing.assert_array_equal(hit.max(axis=0), (8, 8, 10))


def test_statistics_of_a_ct_count_water_and_leave_out_what_lies_below_the_window():
    voxels = body_in_air()
    volume = Volume(voxels=voxels, affine=np.eye(4))
    found = conform(examined({"ct": volume}), Plan(intensity="window", window_hu=(-900.0, 500.0))).intensities["ct"]
    inside = voxels[20:26, 2:8, 10:20]
    assert found.foreground == pytest.approx(inside.size / voxels.size)
    assert found.mean == pytest.approx(inside.mean()) and found.percentiles["50"] == np.median(inside)
    air = Volume(voxels=np.full((6, 6, 6), -1000, dtype=np.int16), affine=np.eye(4))
    with pytest.raises(Rejected, match="no-usable-series"):
        conform(examined({"ct": air}), Plan(intensity="window"))


@pytest.mark.parametrize("percentiles", [(1.0, 99.5), (0.0, 100.0), (2.0, 99.0)])
def test_a_percentile_that_is_not_measured_is_refused_when_the_plan_is_made(percentiles):
    with pytest.raises(ValueError, match="measures the percentiles 1, 5, 50, 95, 99"):
        Plan(intensity="percentile", percentiles=percentiles)
    assert Plan(intensity="percentile", percentiles=(5, 95)).percentiles == (5, 95)
