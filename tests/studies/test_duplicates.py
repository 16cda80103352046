"""The same volume under two subjects is found however it was changed; two heads that are merely alike are not."""

import itertools

import numpy as np
import pytest
from scipy import ndimage

from tomoglot.studies.appearance import (
    CELLS,
    OUTSIDE,
    SeriesRow,
    describe,
    digest_voxels,
    pack,
    picture,
    reduce,
    unpack,
)
from tomoglot.studies.curate import AcceptedRow
from tomoglot.studies.duplicates import find_duplicates, likeness, shared_reports
from tomoglot.studies.study import Volume
from tomoglot.studies.table import write_table

SPACING_MM = 3.0
AFFINE = np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1.0])


def smooth(seed, sigma, shape=(56, 64, 52)):
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(0, 1, shape), sigma)
    return field / field.std()


def head(seed):
    """A head like all others (one outer form, one anatomy) with differences of its own."""
    shape = (56, 64, 52)
    middle = (np.asarray(shape) - 1) / 2
    away = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) - middle
    inside = np.square(away / (24, 28, 22)).sum(-1) < 1
    return (np.where(inside, 100 + 25 * smooth(0, 4) + 10 * smooth(seed, 5), 0)).astype(np.float32)


COHORT = [head(seed) for seed in range(1, 13)]
NOISE = np.random.default_rng(5)

CHANGES = {
    "rescaled": lambda v: (0.37 * v + 50, AFFINE),
    "another contrast curve": lambda v: (np.sign(v) * np.abs(v) ** 0.8, AFFINE),
    "noise": lambda v: (v + NOISE.normal(0, 8, v.shape), AFFINE),
    "moved by one voxel": lambda v: (np.roll(v, 1, axis=1), AFFINE),
    "background cut off": lambda v: (v[3:-2, 2:-3, 1:], AFFINE),
    "resampled to larger voxels": lambda v: (ndimage.zoom(v, 0.8, order=1), AFFINE @ np.diag([1 / 0.8] * 3 + [1])),
    "stored with other axes": lambda v: (
        v.transpose(2, 0, 1)[:, ::-1],
        AFFINE @ np.array([[0, -1, 0, v.shape[0] - 1], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]]),
    ),
}


def row(voxels, subject, *, affine=AFFINE, split=None, sequence="t1w"):
    measured = describe(reduce(Volume(voxels=voxels, affine=affine)), subject=subject, study="1", sequence=sequence)
    return measured.model_copy(update={"split": split})


@pytest.fixture(scope="module")
def cohort():
    return [row(voxels, f"s{at}", split=("train", "test")[at % 2]) for at, voxels in enumerate(COHORT)]


def found(rows, folder):
    write_table(rows, folder / "series.parquet", SeriesRow)
    return find_duplicates(folder / "series.parquet")


def test_heads_that_are_merely_alike_are_no_duplicates(cohort, tmp_path):
    alike = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in itertools.combinations(COHORT, 2)]
    assert min(alike) > 0.95, "the test is only worth something while they are alike"
    assert found(cohort, tmp_path) == []


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_found_and_nothing_else(change, cohort, tmp_path):
    voxels, affine = CHANGES[change](COHORT[4])
    (pair,) = found([*cohort, row(voxels, "copy", affine=affine, split="test")], tmp_path)
    assert {pair.subject, pair.other_subject} == {"s4", "copy"} and pair.leak
    assert pair.kind == ("same-voxels" if change == "stored with other axes" else "near")
    assert pair.likeness >= 0.8


def test_a_mirrored_copy_is_called_mirrored(cohort, tmp_path):
    (pair,) = found([*cohort, row(COHORT[4][::-1], "copy", split="train")], tmp_path)
    assert (pair.kind, pair.leak) == ("mirrored", False)


def test_a_copy_under_another_sequence_name_is_found(cohort, tmp_path):
    others = [
        row((60 + 9 * smooth(99, 4) + 5 * smooth(seed, 5)) * (COHORT[0] > 0), f"s{seed}", sequence="flair")
        for seed in range(20, 30)
    ]
    (pair,) = found([*cohort, *others, row(COHORT[4] * 2, "copy", sequence="flair")], tmp_path)
    assert {pair.sequence, pair.other_sequence} == {"t1w", "flair"}


def test_two_series_of_one_subject_may_show_the_same(cohort, tmp_path):
    assert found([*cohort, row(COHORT[4] * 2, "s4"), row(COHORT[4], "s4")], tmp_path) == []


def test_many_copies_make_few_rows_and_every_copy_is_in_one(cohort, tmp_path):
    copies = [row(COHORT[4], f"copy{at}", split="test") for at in range(40)]
    pairs = found([*cohort, *copies], tmp_path)
    assert len(pairs) <= 60
    assert {f"copy{at}" for at in range(40)} <= {pair.subject for pair in pairs} | {p.other_subject for p in pairs}


def test_leaks_come_first(cohort, tmp_path):
    copies = [row(COHORT[4], "inside", split="train"), row(COHORT[6] * 2, "across", split="test")]
    assert [pair.leak for pair in found([*cohort, *copies], tmp_path)] == [True, False]


def test_a_cohort_too_small_for_a_mean_asks_for_more_likeness(tmp_path):
    rows = [row(COHORT[0], "a"), row(COHORT[1], "b"), row(COHORT[0] * 3 + 9, "c")]
    (pair,) = found(rows, tmp_path)
    assert {pair.subject, pair.other_subject} == {"a", "c"}


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_and_one_series_have_no_duplicates(count, cohort, tmp_path):
    assert found(cohort[:count], tmp_path) == []


def test_a_volume_of_one_value_or_one_slice_is_measured_without_a_warning(tmp_path):
    odd = [np.ones((8, 8, 8)), COHORT[0][:, :, 20:21], COHORT[1][:1, :1, :]]
    assert found([row(voxels, str(at)) for at, voxels in enumerate(odd)], tmp_path) == []


def test_likeness_is_the_correlation_after_the_means_are_taken_out():
    rng = np.random.default_rng(3)
    mean = ndimage.gaussian_filter(rng.normal(0, 1, (CELLS,) * 3), 2) * 400
    own = [ndimage.gaussian_filter(rng.normal(0, 1, (CELLS,) * 3), 2) * 60 for _ in range(2)]
    one, other = (np.clip(mean + part, -127, 127).astype(np.int8) for part in (own[0], 0.5 * own[0] + own[1]))
    basis = np.linalg.qr(np.stack([np.ones(mean.size), mean.ravel()], 1))[0]
    rest = [values.ravel() - basis @ (basis.T @ values.ravel()) for values in (one.astype(float), other.astype(float))]
    slow = rest[0] @ rest[1] / np.linalg.norm(rest[0]) / np.linalg.norm(rest[1])
    # The fast way also looks for a shift, which here finds next to none.
    assert likeness(one, other, [mean.astype(np.float32)]) == pytest.approx(slow, abs=0.05)
    assert likeness(one, other) > likeness(one, other, [mean.astype(np.float32)])


def test_cells_without_voxels_are_not_compared():
    signature = np.random.default_rng(0).integers(-100, 100, (CELLS,) * 3).astype(np.int8)
    part = np.where(np.arange(CELLS)[:, None, None] < 9, OUTSIDE, signature).astype(np.int8)
    assert likeness(part, signature) == pytest.approx(1.0, abs=0.02)
    assert likeness(np.where(np.arange(CELLS) < 15, OUTSIDE, signature).astype(np.int8), signature) == 0.0


def test_a_signature_comes_back_from_its_text_and_a_digest_does_not_care_for_number_types():
    signature = np.random.default_rng(0).integers(-128, 128, (CELLS,) * 3).astype(np.int8)
    assert np.array_equal(unpack(pack(signature)), signature)
    whole = np.round(COHORT[0])
    assert digest_voxels(whole.astype(np.int16)) == digest_voxels(whole.astype(np.float64)) != digest_voxels(whole + 1)


def test_pictures_show_the_right_on_the_left_and_the_head_up():
    import io

    from PIL import Image

    voxels = np.zeros((30, 30, 30), np.float32)
    voxels[10:20, 10:20, 10:20] = 0.5
    voxels[24:, 10:20, 10:20] = 1.0  # on the subject's right
    voxels[10:20, 24:, 10:20] = 0.9  # in front
    voxels[10:20, 10:20, 24:] = 0.8  # above
    shown = np.asarray(Image.open(io.BytesIO(picture([reduce(Volume(voxels=voxels, affine=np.eye(4)))]))))
    axial, coronal, sagittal = shown[:, :96].astype(int), shown[:, 96:192].astype(int), shown[:, 192:].astype(int)
    assert axial[48, 5] > 200 and axial[48, 90] < 50 and axial[5, 48] > 200 and axial[90, 48] < 50
    assert coronal[48, 5] > 200 and coronal[48, 90] < 50 and coronal[5, 48] > 180 and coronal[90, 48] < 50
    assert sagittal[48, 5] > 200 and sagittal[48, 90] < 50 and sagittal[5, 48] > 180 and sagittal[90, 48] < 50


def test_reports_shared_by_subjects_are_counted(tmp_path):
    said = [("a", "x", "train"), ("b", "x", "test"), ("c", "y", "train"), ("d", "y", "train"), ("e", "z", "test")]
    said += [("f", "", "test"), ("g", "", "train"), ("h", "own", "test"), ("h", "own", "test")]
    rows = [
        AcceptedRow(
            subject=subject, study=str(at), split=split, sequences=("t1w",), shapes=((1, 1, 1),),
            spacings_mm=((1, 1, 1),), has_report=True, has_mask=False, labels={}, report_digest=digest,
        )
        for at, (subject, digest, split) in enumerate(said)
    ]  # fmt: skip
    write_table(rows, tmp_path / "accepted.parquet", AcceptedRow)
    shared = shared_reports(tmp_path / "accepted.parquet")
    assert (shared.reports, shared.studies, shared.across) == (2, 4, 1)
