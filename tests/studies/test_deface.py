"""The face leaves and the brain stays, whichever way the voxels lie; what may not be a head is refused."""

import itertools
import sys
import types
from functools import cache
from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from tomoglot.geometry import spacing_mm
from tomoglot.studies import deface as module
from tomoglot.studies.deface import deface, deface_file
from tomoglot.studies.deidentify.folder import DefacedRow, deidentify_folder
from tomoglot.studies.deidentify.profile import Options
from tomoglot.studies.nifti import read_nifti, write_nifti
from tomoglot.studies.study import Rejected, Volume
from tomoglot.studies.table import read_rows

AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])
AFFINE[:3, 3] = -120, -140, -150
Mask = NDArray[np.bool_]


def ball(centre_mm: tuple[float, float, float], radii_mm: tuple[float, float, float]) -> Mask:
    at = np.stack(np.meshgrid(*map(np.arange, (120, 140, 100)), indexing="ij"), -1) @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    return (((at - centre_mm) / np.asarray(radii_mm)) ** 2).sum(-1) <= 1


@cache
def head() -> tuple[Volume, Mask, Mask]:
    """A head of balls, 2 x 2 x 3 mm: the volume, its brain and its nose."""
    brain = ball((0, 0, 25), (65, 85, 55)) | ball((0, -45, -20), (45, 35, 30))
    nose = ball((0, 95, -55), (15, 20, 15))
    skull, face, neck = (
        ball((0, 0, 20), (78, 98, 73)),
        ball((0, 35, -40), (65, 60, 75)),
        ball((0, -20, -100), (55,) * 3),
    )
    voxels = np.where(skull | face | neck | nose, 500, 3).astype(np.int16)
    voxels[brain] = 900
    return Volume(voxels=voxels, affine=AFFINE), brain, nose & ~skull


def turned(array: NDArray[np.generic], order: tuple[int, ...], flips: tuple[int, ...]) -> NDArray[np.generic]:
    return np.flip(array.transpose(order), [axis for axis in range(3) if flips[axis]])


@pytest.fixture
def quickshear() -> None:
    pytest.importorskip("quickshear", reason="the extra is not installed: pip install 'tomoglot[deface]'")


@pytest.fixture
def standing_in(quickshear: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that knows the brain of `head`: what is bright."""
    monkeypatch.setattr(module, "find_spec", lambda name: object())
    monkeypatch.setattr(module, "_found_brain", lambda volume: np.asarray(volume.voxels > 800))


@pytest.mark.usefixtures("quickshear")
def test_the_nose_goes_and_every_voxel_of_the_brain_stays() -> None:
    volume, brain, nose = head()
    done = deface(volume, brain=brain)
    changed = done.volume.voxels != volume.voxels
    assert done.outcome == "cut" and not changed[brain].any() and changed[nose].mean() > 0.95
    assert set(np.unique(done.volume.voxels[changed])) == {3}, "what is cut has the value of air"
    assert done.volume.voxels.dtype == np.int16 and np.array_equal(done.volume.affine, AFFINE)
    tissue = volume.voxels > 100
    assert done.removed_ml == pytest.approx((changed & tissue).sum() * 0.012)
    assert done.removed_share == pytest.approx((changed & tissue).sum() / tissue.sum())
    assert done.brain_ml == pytest.approx(brain.sum() * 0.012)


@pytest.mark.usefixtures("quickshear")
def test_the_same_is_cut_however_the_axes_run() -> None:
    volume, brain, _ = head()
    wanted = deface(volume, brain=brain).volume.voxels
    for order, flips in itertools.product(itertools.permutations(range(3)), [(0, 0, 0), (1, 0, 1), (1, 1, 1)]):
        turn = nibabel.orientations.inv_ornt_aff(
            [(order.index(axis), -1 if flips[order.index(axis)] else 1) for axis in range(3)], volume.voxels.shape
        )
        other = Volume(voxels=turned(volume.voxels, order, flips), affine=AFFINE @ turn)
        done = deface(other, brain=turned(brain, order, flips))
        assert np.array_equal(done.volume.voxels, turned(wanted, order, flips)), (order, flips)


@pytest.mark.usefixtures("quickshear")
def test_a_brain_that_touches_both_ends_of_the_field_is_not_cut() -> None:
    volume, brain, _ = head()
    rows = np.nonzero(brain.any((0, 1)))[0]
    field = np.s_[:, :, rows[0] + 1 : rows[-1]]
    done = deface(Volume(voxels=volume.voxels[field], affine=AFFINE), brain=brain[field])
    assert np.array_equal(done.volume.voxels[brain[field]], volume.voxels[field][brain[field]])


@pytest.mark.usefixtures("quickshear")
def test_a_brain_without_a_head_is_said_to_be_one_and_left_as_it_is() -> None:
    volume, brain, _ = head()
    alone = Volume(voxels=np.where(brain, volume.voxels, 0), affine=AFFINE)
    done = deface(alone, brain=brain)
    assert (done.outcome, done.removed_ml, done.removed_share) == ("brain-only", 0, 0)
    assert done.volume is alone


@pytest.mark.usefixtures("quickshear")
def test_a_mask_that_is_no_brain_is_refused() -> None:
    volume, brain, _ = head()
    for wrong in (
        np.zeros_like(brain),
        ball((0, 0, 20), (40, 40, 40)),  # too small
        volume.voxels > 100,  # the whole head
        brain | ball((0, 90, -120), (12, 12, 12)),  # a piece near the chin, which would keep the face
    ):
        with pytest.raises(Rejected, match="implausible-brain"):
            deface(volume, brain=wrong)
    for wrong in (brain.astype(np.uint8), brain[1:]):
        with pytest.raises(ValueError, match="wanted booleans"):
            deface(volume, brain=wrong)


@pytest.mark.usefixtures("quickshear")
def test_a_head_that_its_affine_turns_over_is_refused() -> None:
    volume, brain, _ = head()
    for turn in (np.diag([1, -1, 1, 1]), np.diag([1, 1, -1, 1]), np.eye(4)[[1, 0, 2, 3]]):
        with pytest.raises(Rejected, match="brain-turned"):
            deface(Volume(voxels=volume.voxels, affine=turn @ AFFINE), brain=brain)


@pytest.mark.usefixtures("quickshear")
def test_where_nothing_lies_below_the_plane_nothing_is_called_cut() -> None:
    volume, brain, _ = head()
    once = deface(volume, brain=brain).volume
    with pytest.raises(Rejected, match="nothing-removed"):
        deface(once, brain=brain)


@pytest.mark.usefixtures("standing_in")
def test_ct_needs_a_mask_of_its_own() -> None:
    volume, brain, nose = head()
    ct = Volume(voxels=volume.voxels - np.int16(1003), affine=AFFINE)
    with pytest.raises(Rejected, match="ct-without-brain-mask"):
        deface(ct)
    assert (deface(ct, brain=brain).volume.voxels[nose] == -1000).mean() > 0.95


def test_what_is_missing_is_said_with_the_extra_that_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    volume, brain, _ = head()
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs quickshear: pip install 'tomoglot\[deface\]'"):
        deface(volume, brain=brain)
    with pytest.raises(ValueError, match="needs quickshear and deepbet"):
        deface(volume)


def test_a_numpy_that_refuses_quickshears_products_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def convex_hull(mask: object) -> None:
        raise ValueError("Both input arrays must be (arrays of) 3-dimensional vectors")

    monkeypatch.setitem(sys.modules, "quickshear", types.SimpleNamespace(convex_hull=convex_hull))
    monkeypatch.setattr(module, "find_spec", lambda name: object())
    with pytest.raises(ValueError, match="quickshear does not run with numpy"):
        deface(head()[0])


@pytest.mark.usefixtures("standing_in")
def test_a_file_becomes_a_file_or_nothing(tmp_path: Path) -> None:
    volume, _, nose = head()
    write_nifti(tmp_path / "a.nii.gz", volume)
    done = deface_file(tmp_path / "a.nii.gz", tmp_path / "out" / "b.nii.gz")
    written = read_nifti(tmp_path / "out" / "b.nii.gz")
    assert np.array_equal(written.voxels, done.volume.voxels) and (written.voxels[nose] == 3).mean() > 0.95
    write_nifti(tmp_path / "c.nii.gz", Volume(voxels=volume.voxels[:40], affine=AFFINE))
    with pytest.raises(Rejected):
        deface_file(tmp_path / "c.nii.gz", tmp_path / "out" / "d.nii.gz")
    assert not (tmp_path / "out" / "d.nii.gz").exists()


@pytest.mark.usefixtures("standing_in")
def test_a_folder_of_nifti_files_is_defaced_on_request_and_says_what_was_cut(tmp_path: Path) -> None:
    volume, _, nose = head()
    source, out = tmp_path / "in", tmp_path / "out"
    write_nifti(source / "jane.nii.gz", volume)
    write_nifti(source / "lesions.nii.gz", Volume(voxels=(nose * 5).astype(np.int16), affine=AFFINE))
    done = deidentify_folder(source, out, key=tmp_path / "key", options=Options(deface=True))
    assert done.written == 1 and [row.reason for row in done.rejected] == ["implausible-brain"]
    (path,) = (out / "nifti").iterdir()
    assert (read_nifti(path).voxels[nose] == 3).mean() > 0.95
    (row,) = read_rows(out / "defaced.parquet", DefacedRow)
    assert row.outcome == "cut" and row.removed_ml > 50 and path.name == f"{row.file}.nii.gz"
    with pytest.raises(ValueError, match="other options"):
        deidentify_folder(source, out, key=tmp_path / "key")


@pytest.mark.usefixtures("standing_in")
def test_faces_in_dicom_are_not_passed_over(tmp_path: Path) -> None:
    dicom_series = pytest.importorskip("dicom_series")
    dicom_series.write_series(tmp_path / "in", dicom_series.marked_volume(), dicom_series.axis_affine())
    with pytest.raises(ValueError, match="NIfTI files alone"):
        deidentify_folder(tmp_path / "in", tmp_path / "out", key=tmp_path / "key", options=Options(deface=True))
    assert not (tmp_path / "out").exists()


def test_the_network_finds_a_real_brain_and_cuts_nothing_of_it(shared: Path) -> None:
    pytest.importorskip("deepbet", reason="the extra is not installed: pip install 'tomoglot[deface]'")
    path = shared / "data/open_ms/longitudinal/raw/patient04/study1_T1W.nii.gz"
    volume = read_nifti(path)
    done = deface(volume)  # the data set was defaced by its makers: little is left to cut
    assert done.outcome == "cut" and 1 < done.removed_ml < 60
    assert 1300 < done.brain_ml < 1800 and np.prod(spacing_mm(volume.affine)) > 2


def test_quickshear_is_given_a_rim_and_its_distance_in_voxels_of_the_up_axis(
    quickshear: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import quickshear as tool

    volume, brain, _ = head()
    rows = np.nonzero(brain.any((0, 1)))[0]
    field = np.s_[:, :, rows[0] : rows[-1] + 1]
    true, seen = tool.quickshear, []

    def spy(ones, mask, buffer):
        seen.append((np.asarray(mask.dataobj), buffer))
        return true(ones, mask, buffer)

    monkeypatch.setattr(tool, "quickshear", spy)
    for order in ((0, 1, 2), (2, 0, 1)):
        turn = nibabel.orientations.inv_ornt_aff([(order.index(axis), 1) for axis in range(3)], brain[field].shape)
        affine = AFFINE @ turn
        deface(Volume(voxels=volume.voxels[field].transpose(order), affine=affine), brain=brain[field].transpose(order))
        mask, buffer = seen.pop()
        assert mask.shape == tuple(size + 2 for size in brain[field].transpose(order).shape)
        for axis in range(3):
            assert not mask.take([0, -1], axis=axis).any(), "opposite faces would join where the brain touches both"
        assert buffer == pytest.approx(10 / 3), "10 mm are 3.3 slices of 3 mm, whichever axis runs up"
