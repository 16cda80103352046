import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tomoglot.studies.acquisition import Acquisition
from tomoglot.studies.dicom.header import Header
from tomoglot.studies.dicom.volumes import Grouped, group
from tomoglot.studies.study import Frame

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
MR = Acquisition(modality="MR", image_type=("ORIGINAL", "PRIMARY", "M", "ND"))


def stack(count: int = 6, step_mm: float = 2.0, *, start: int = 0, name: str = "a", **changes) -> list[Header]:
    """Axial MR slices `step_mm` apart, with numbers from `start`."""
    orientation = changes.pop("orientation", AXIAL)
    normal = np.cross(orientation[:3], orientation[3:])
    headers = []
    for k in range(count):
        x, y, z = np.array([-20.0, -30.0, 10.0]) + k * step_mm * normal
        header = Header(
            patient_id="Canary^Patient",
            study_uid="1.2.3",
            series_uid="1.2.3.4",
            sop_uid=f"1.2.3.4.{name}.{start + k}",
            where=Frame(path=Path(f"Canary/{name}{start + k}.dcm")),
            acquisition=MR,
            acquisition_number=1,
            instance_number=start + k + 1,
            frame_of_reference="1.9",
            rows=12,
            columns=10,
            spacing_mm=(1.5, 1.0),
            position_mm=(float(x), float(y), float(z)),
            orientation=orientation,
            thickness_mm=step_mm,
            bits_allocated=16,
            bits_stored=16,
            photometric="MONOCHROME2",
        )
        headers.append(replace(header, **changes))
    return headers


def physics(headers, **changes):
    return [replace(header, acquisition=replace(header.acquisition, **changes)) for header in headers]


def moved(header: Header, x=0.0, y=0.0, z=0.0) -> Header:
    a, b, c = header.position_mm
    return replace(header, position_mm=(a + x, b + y, c + z))


def reasons(grouped: Grouped) -> list[str]:
    return [error.reason for _, error in grouped.refused]


def the_refusal(headers, reason: str) -> str:
    """Evidence of the one refusal, which must take every header."""
    grouped = group(headers)
    assert not grouped.volumes
    assert reasons(grouped) == [reason], [str(error) for _, error in grouped.refused]
    assert len(grouped.refused[0][0]) == len(headers)
    return grouped.refused[0][1].evidence


def test_the_affine_is_that_of_the_positions_in_ras():
    (plan,) = group(stack()).volumes
    # LPS to RAS turns the signs of x and y; i runs along a row (spacing between columns, 1.0), j down a column (1.5).
    np.testing.assert_allclose(plan.affine, [[-1, 0, 0, 20], [0, -1.5, 0, 30], [0, 0, 2, 10], [0, 0, 0, 1]])
    assert plan.shape == (10, 12, 6)
    assert plan.acquisition.num_slices == 6
    assert plan.part == ""


@pytest.mark.parametrize("orientation", [AXIAL, CORONAL, SAGITTAL])
def test_every_plane_gives_a_right_handed_grid(orientation):
    (plan,) = group(stack(orientation=orientation)).volumes
    assert np.linalg.det(plan.affine[:3, :3]) > 0


@settings(max_examples=40, derandomize=True, deadline=None)
@given(st.permutations(range(7)), st.permutations(range(7)), st.permutations(range(7)))
def test_neither_order_nor_file_name_nor_instance_number_matters(order, names, numbers):
    plain = group(stack(7)).volumes[0]
    shuffled = [
        replace(header, where=Frame(path=Path(f"{names[k]}.dcm")), instance_number=numbers[k])
        for k, header in enumerate(stack(7))
    ]
    (plan,) = group([shuffled[k] for k in order]).volumes
    assert [header.sop_uid for header in plan.headers] == [header.sop_uid for header in plain.headers]
    np.testing.assert_array_equal(plan.affine, plain.affine)


def test_one_missing_slice_is_refused_with_its_place():
    headers = stack(10)
    del headers[4]
    evidence = the_refusal(headers, "missing-slice")
    assert "1 of 10 slices" in evidence and "after slice 4" in evidence and "4.00 mm" in evidence


def test_every_second_slice_missing_shows_in_the_stated_step():
    assert "8.00 mm apart" in the_refusal(stack(5, 8.0, slice_step_mm=4.0, thickness_mm=4.0), "missing-slice")
    # A stated step below the thickness is a gap between slices, as some vendors write it.
    assert len(group(stack(5, 8.0, slice_step_mm=4.0, thickness_mm=5.0)).volumes) == 1


def test_a_step_that_differs_is_refused_and_a_scanners_rounding_is_not():
    uneven = stack(8, 7.0)
    uneven[5] = moved(uneven[5], z=0.07)
    assert len(group(uneven).volumes) == 1, "0.07 mm of 7 mm, as a real GE series has"
    uneven[5] = moved(uneven[5], z=0.6)
    assert "steps run from 6.330 to 7.670 mm" in the_refusal(uneven, "uneven-steps")


def test_small_differences_that_add_up_are_refused():
    headers = [moved(header, z=0.001 * k * k) for k, header in enumerate(stack(40, 2.0))]
    assert "from its place" in the_refusal(headers, "uneven-steps")


def test_a_slice_beside_the_line_of_the_others_is_refused():
    headers = stack(9)
    headers[3] = moved(headers[3], x=0.8)
    assert "0.800 mm from its place" in the_refusal(headers, "shifted-slices")


def test_a_leaning_stack_is_refused_with_its_angle_or_taken_on_request():
    lean = math.tan(math.radians(15)) * 2.0
    tilted = [moved(header, y=lean * k) for k, header in enumerate(stack(12))]
    assert "15.0 degrees" in the_refusal(tilted, "gantry-tilt")
    (plan,) = group(tilted, accept_tilt=True).volumes
    assert plan.part == "untilted"
    assert plan.tilt_deg == pytest.approx(15.0)
    np.testing.assert_allclose(plan.affine[:3, 2], [0, -lean, 2.0], atol=1e-9)


def test_a_stated_tilt_that_nothing_shows_is_refused_unless_the_volume_is_derived():
    assert "20.0 degrees" in the_refusal(stack(tilt_deg=-20.0), "gantry-tilt")
    derived = physics(stack(tilt_deg=-20.0), image_type=("DERIVED", "SECONDARY", "M"))
    assert len(group(derived).volumes) == 1


@pytest.mark.parametrize(
    ("change", "reason", "words"),
    [
        ({"position_mm": None}, "missing-geometry", "no Position"),
        ({"orientation": None}, "missing-geometry", "no Orientation"),
        ({"spacing_mm": None}, "missing-geometry", "no Pixel Spacing"),
        ({"spacing_mm": (math.nan, 1.0)}, "missing-geometry", "not finite"),
        ({"spacing_mm": (0.0, 1.0)}, "bad-spacing", "0 x 1 mm"),
        ({"orientation": (1.0, 0.0, 0.0, 0.1, 1.0, 0.0)}, "bad-orientation", "0.1000"),
        ({"orientation": (2.0, 0.0, 0.0, 0.0, 1.0, 0.0)}, "bad-orientation", "2.0000"),
        ({"rows": 1}, "wrong-dimension", "1 x 10"),
        ({"samples": 3}, "not-monochrome", "3 samples"),
        ({"photometric": "MONOCHROME1"}, "not-monochrome", "MONOCHROME2"),
        ({"slope": 0.0}, "bad-scaling", "slope 0.0"),
        ({"intercept": math.inf}, "bad-scaling", "inf"),
        ({"rows": 14}, "inconsistent-slices", "2 matrix sizes"),
        ({"spacing_mm": (1.6, 1.0)}, "inconsistent-slices", "1.6"),
        ({"acquisition": replace(MR, echo_ms=80.0)}, "inconsistent-slices", "0 to 80 ms"),
        ({"acquisition": replace(MR, temporal_position=2)}, "inconsistent-slices", "2 temporal positions"),
        ({"acquisition": replace(MR, kernel="Canary")}, "inconsistent-slices", "2 kernels"),
        ({"frame_of_reference": "1.8"}, "inconsistent-slices", "2 frames of reference"),
        ({"orientation": (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)}, "mixed-orientation", "2 orientations"),
    ],
)
def test_one_faulty_slice_refuses_the_whole_volume(change, reason, words):
    headers = stack()
    headers[2] = replace(headers[2], **change)
    assert words in the_refusal(headers, reason)


@pytest.mark.parametrize("modality", ["CR", "XA", "US", "Canary"])
def test_what_is_no_stack_of_slices_is_refused(modality):
    assert modality not in the_refusal(physics(stack(), modality=modality), "unsupported-modality")


def test_ct_without_rescale_is_refused_because_it_may_not_be_hu():
    the_refusal(physics(stack(), modality="CT"), "missing-rescale")
    assert len(group(physics(stack(slope=1.0, intercept=-1024.0), modality="CT")).volumes) == 1


def test_a_single_slice_and_many_at_one_position_are_no_volume():
    the_refusal(stack(1), "too-few-slices")
    assert "all 6 slices" in the_refusal(
        [moved(header, z=-2.0 * k) for k, header in enumerate(stack())], "one-position"
    )


def test_a_localiser_of_single_slices_is_refused_and_one_of_stacks_is_three_volumes():
    planes = [AXIAL, CORONAL, SAGITTAL]
    single = [header for n, plane in enumerate(planes) for header in stack(1, start=n, orientation=plane)]
    assert "3 slices in 3 orientations" in the_refusal(single, "mixed-orientation")
    three = [header for n, plane in enumerate(planes) for header in stack(5, start=9 * n, orientation=plane)]
    assert sorted(plan.part for plan in group(three).volumes) == ["plane1", "plane2", "plane3"]


def test_a_radial_series_is_refused_without_comparing_all_pairs():
    turns = np.linspace(0, math.pi, 3000, endpoint=False)
    headers = [
        replace(header, orientation=(math.cos(turn), math.sin(turn), 0.0, 0.0, 0.0, -1.0), position_mm=(0.0, 0.0, 0.0))
        for header, turn in zip(stack(3000), turns, strict=True)
    ]
    the_refusal(headers, "mixed-orientation")


def test_echoes_b_values_and_kinds_of_image_are_parted_and_named():
    echoes = physics(stack(), echo_number=1) + physics(stack(name="b", start=6), echo_number=2)
    assert [plan.part for plan in group(echoes).volumes] == ["echo1", "echo2"]
    weighted = physics(stack(), b_value=0.0) + physics(stack(name="b", start=6), b_value=1000.0)
    assert [plan.part for plan in group(weighted).volumes] == ["b0", "b1000"]
    phase = physics(stack(name="b", start=6), image_type=("ORIGINAL", "PRIMARY", "P", "ND"))
    assert sorted(plan.part for plan in group(stack() + phase).volumes) == ["magnitude", "phasemap"]
    other = stack(name="b", start=6, rescale_type="HU")
    assert sorted(plan.part for plan in group(stack() + other).volumes) == ["type1", "type2"]
    unknown = physics(stack(name="b", start=6), image_type=("ORIGINAL", "PRIMARY", "M", "CANARY"))
    assert sorted(plan.part for plan in group(stack() + unknown).volumes) == ["type1", "type2"]


def test_two_subjects_never_share_a_volume():
    headers = stack(6)
    mixed = [replace(header, patient_id="another") if k >= 3 else header for k, header in enumerate(headers)]
    assert [plan.shape[2] for plan in group(mixed).volumes] == [3, 3]


@pytest.mark.parametrize(
    "tell",
    [
        lambda header, phase, k: replace(header, acquisition=replace(MR, temporal_position=phase)),
        lambda header, phase, k: replace(header, acquisition=replace(MR, trigger_ms=25.0 * phase)),
        lambda header, phase, k: replace(header, acquisition=replace(MR, echo_ms=10.0 * phase)),
        lambda header, phase, k: replace(header, acquisition=replace(MR, kernel=f"B{phase}0")),
        lambda header, phase, k: replace(header, acquisition_number=phase),
        # Two tags that tell phases apart only together.
        lambda header, phase, k: replace(
            header, acquisition_number=phase // 2, acquisition=replace(MR, inversion_ms=100.0 * (phase % 2))
        ),
        # No tag, but numbers that run volume after volume, or position after position.
        lambda header, phase, k: replace(header, instance_number=6 * phase + k),
        lambda header, phase, k: replace(header, instance_number=4 * k + phase),
    ],
)
def test_phases_at_the_same_positions_are_told_apart(tell):
    headers = [
        replace(tell(header, phase, k), sop_uid=f"{phase}.{k}")
        for phase in range(4)
        for k, header in enumerate(stack(6, instance_number=None))
    ]
    np.random.default_rng(0).shuffle(headers)
    plans = group(headers).volumes
    assert [plan.part for plan in plans] == ["phase1", "phase2", "phase3", "phase4"]
    for phase, plan in enumerate(plans):
        assert [header.sop_uid for header in plan.headers] == [f"{phase}.{k}" for k in range(6)]


def test_a_trigger_time_that_runs_through_one_volume_does_not_part_it():
    headers = [physics([header], trigger_ms=30.0 * k)[0] for k, header in enumerate(stack())]
    assert len(group(headers).volumes) == 1


def test_an_unfinished_phase_is_refused_and_the_others_stay():
    headers = [
        physics([replace(header, sop_uid=f"{phase}.{k}")], temporal_position=phase)[0]
        for phase in range(3)
        for k, header in enumerate(stack(6))
    ][:-2]
    grouped = group(headers)
    assert len(grouped.volumes) == 2
    ((members, error),) = grouped.refused
    assert (error.reason, len(members)) == ("incomplete-phase", 4)
    assert "4 slices, others have 6" in error.evidence


def test_repeated_positions_that_nothing_tells_apart_are_refused():
    twice = stack() + stack(name="b", instance_number=None)
    assert "12 slices at 6 positions, 2 to 2 at each" in the_refusal(twice, "repeated-positions")
    once_more = [*stack(), replace(stack()[2], sop_uid="1.5", instance_number=99)]
    assert "1 to 2 at each" in the_refusal(once_more, "repeated-positions")


def test_a_second_copy_of_an_image_is_left_out_and_listed():
    copies = [replace(header, where=Frame(path=Path("copy") / header.where.path)) for header in stack()[:2]]
    grouped = group(stack() + copies)
    assert [plan.shape[2] for plan in grouped.volumes] == [6]
    ((members, error),) = grouped.refused
    assert (error.reason, len(members)) == ("duplicate-slice", 2)
    changed = [moved(copies[0], z=0.5)]
    assert reasons(group(stack() + changed)) == ["conflicting-copies"]


def test_a_mosaic_is_a_volume_and_its_tiles_may_run_either_way():
    sheet = {"rows": 24, "columns": 30, "mosaic_tiles": 5, "slice_step_mm": 4.0}
    (plan,) = group(stack(1, slice_normal=(0.0, 0.0, 1.0), **sheet)).volumes
    assert plan.shape == (10, 8, 5)
    # The sheet's corner is moved by half of what the sheet is larger than a tile: 10 columns of 1.0, 8 rows of 1.5 mm.
    np.testing.assert_allclose(plan.affine[:3, 3], [10, 18, 10])
    (other,) = group(stack(1, slice_normal=(0.0, 0.0, -1.0), **sheet)).volumes
    np.testing.assert_allclose(other.affine[:3, 2], [0, 0, 4], err_msg="still right-handed")
    np.testing.assert_allclose(other.affine[:3, 3], [10, 18, 10 - 4 * 4])
    two = [replace(header, position_mm=(-20.0, -30.0, 10.0)) for header in stack(2, slice_normal=(0, 0, 1.0), **sheet)]
    assert [plan.part for plan in group(two).volumes] == ["phase1", "phase2"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"slice_normal": None}, "bad-mosaic"),
        ({"slice_normal": (1.0, 0.0, 0.0)}, "bad-mosaic"),
        ({"mosaic_tiles": 10}, "bad-mosaic"),
        ({"slice_step_mm": None}, "missing-geometry"),
        ({"slice_step_mm": -3.0}, "bad-spacing"),
        (
            {"mosaic_tiles": None, "acquisition": replace(MR, image_type=("ORIGINAL", "PRIMARY", "MOSAIC"))},
            "bad-mosaic",
        ),
    ],
)
def test_a_mosaic_that_does_not_say_how_it_is_cut_is_refused(change, reason):
    sheet = {"rows": 24, "columns": 30, "mosaic_tiles": 5, "slice_step_mm": 4.0, "slice_normal": (0.0, 0.0, 1.0)}
    the_refusal(stack(1, **{**sheet, **change}), reason)


faults = st.sampled_from(
    [
        {"position_mm": None},
        {"position_mm": (math.nan, 0.0, 0.0)},
        {"position_mm": (1e300, 1e300, 1e300)},
        {"orientation": (0.0,) * 6},
        {"orientation": CORONAL},
        {"spacing_mm": (1e-9, 1.0)},
        {"slope": math.nan},
        {"rows": 0},
        {"sop_uid": ""},
        {"sop_uid": "1.2.3.4.a.0"},
        {"instance_number": None},
        {"mosaic_tiles": 4},
        {"series_uid": "2"},
        {"acquisition": Acquisition()},
        {"acquisition": replace(MR, b_value=math.nan)},
        {"acquisition": replace(MR, echo_number=-3, b_value=-7.0)},
    ]
)


@settings(max_examples=150, derandomize=True, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 11), faults), max_size=6), st.integers(1, 12), st.floats(0.001, 300))
def test_every_header_ends_in_one_volume_or_one_refusal_and_no_name_is_told(broken, count, step_mm):
    headers = stack(count, step_mm)
    for place, fault in broken:
        headers[place % count] = replace(headers[place % count], **fault)
    grouped = group(headers)
    placed = [header for plan in grouped.volumes for header in plan.headers]
    placed += [header for members, _ in grouped.refused for header in members]
    assert sorted(map(id, placed)) == sorted(map(id, headers))
    for plan in grouped.volumes:
        assert np.isfinite(plan.affine).all() and np.linalg.det(plan.affine[:3, :3]) > 0
        assert "canary" not in plan.part.lower()
    assert not any("canary" in str(error).lower() for _, error in grouped.refused)
