"""Predictions go back to the grid that the study's file had, whatever way its axes ran."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel import orientations

from tomoglot.geometry import Grid, spacing_mm
from tomoglot.store.plan import Plan
from tomoglot.store.reader import Store
from tomoglot.store.writer import write_store
from tomoglot.studies.nifti import read_nifti, write_nifti
from tomoglot.studies.source import Sources
from tomoglot.studies.study import Series, Study, Volume
from tomoglot.tasks.maps.native import onto_native, write_region

OBLIQUE = nibabel.affines.from_matvec(
    nibabel.eulerangles.euler2mat(0.1, -0.05, 0.15) @ np.diag([2.0, 1.5, 3.0]), [-20, 10, 5]
)


def stored(folder: Path, code: str, plan: Plan) -> tuple[Store, Volume, Volume]:
    """One study whose file's axes run as `code` says; the store, the mask's file and the series' file."""
    turn = orientations.ornt_transform(orientations.axcodes2ornt("RAS"), orientations.axcodes2ornt(tuple(code)))
    rng = np.random.default_rng(0)
    image, mask = rng.integers(1, 900, (13, 11, 9)).astype(np.int16), np.zeros((13, 11, 9), dtype=np.uint8)
    mask[2:7, 3:9, 0:4], mask[12, 10, 8] = 4, 4
    affine = OBLIQUE @ orientations.inv_ornt_aff(turn, image.shape)
    volumes = [Volume(voxels=orientations.apply_orientation(v, turn), affine=affine) for v in (image, mask)]
    paths = [folder / name for name in ("flair.nii.gz", "mask.nii.gz")]
    for path, volume in zip(paths, volumes, strict=True):
        write_nifti(path, volume)
    study = Study(subject="a", study="1", series=(Series(sequence="flair", path=paths[0]),), mask=paths[1])
    write_store(Sources(studies=[study], rejected=[]), folder / "store", plan)
    return Store.open(folder / "store"), read_nifti(paths[1]), read_nifti(paths[0])


@pytest.mark.parametrize("code", ["RAS", "LPS", "PIR", "SLA"])
@pytest.mark.parametrize("field", [None, (14, 14, 8)])
def test_the_mask_of_the_store_comes_back_as_the_file_had_it(tmp_path, code, field):
    store, mask, image = stored(tmp_path, code, Plan(field_voxels=field))
    (row,) = store.rows
    inside = store.read_mask(row, (0, 0, 0), row.shape).astype(np.float32) / 4
    out = tmp_path / "out" / "region.nii.gz"
    write_region(out, inside, np.array(row.affine), row.native_grid, threshold=0.5, simulated=True)
    written = nibabel.load(out)
    np.testing.assert_array_equal(written.affine, nibabel.load(tmp_path / "flair.nii.gz").affine)
    assert written.shape == image.voxels.shape
    assert b"simulated" in written.header["descrip"].tobytes() and b"research" in written.header["descrip"].tobytes()
    again = read_nifti(out).voxels
    if field is None:
        np.testing.assert_array_equal(again, mask.voxels // 4)
    else:  # one slice of the file lies outside of the store's field: there, and only there, nothing was predicted
        differing = np.argwhere(again != mask.voxels // 4)
        axis = code.translate(str.maketrans("RLAPSI", "001122")).index("2")
        assert len(np.unique(differing[:, axis])) <= 1 and len(differing) < 0.3 * (mask.voxels > 0).sum()


def test_from_a_coarser_grid_the_region_keeps_its_place_and_size(tmp_path):
    store, mask, _ = stored(tmp_path, "LPS", Plan(spacing_mm=(3.0, 3.0, 3.0)))
    (row,) = store.rows
    assert row.spacing_mm == pytest.approx((3, 3, 3))
    inside = store.read_mask(row, (0, 0, 0), row.shape).astype(np.float32) / 4
    back = onto_native(inside, np.array(row.affine), row.native_grid, threshold=0.5)
    true = mask.voxels > 0
    assert 2 * (back & true).sum() / (back.sum() + true.sum()) > 0.75


def test_probabilities_are_interpolated_before_the_threshold_so_that_outlines_are_no_blocks():
    ramp = np.broadcast_to(np.array([0.0, 1.0], dtype=np.float32)[:, None, None], (2, 3, 3)).copy()
    fine = Grid((9, 3, 3), np.diag([0.25, 1, 1, 1.0]))
    assert spacing_mm(fine.affine) == (0.25, 1, 1)
    for threshold, first in [(0.3, 2), (0.5, 2), (0.7, 3)]:
        found = onto_native(ramp, np.eye(4), fine, threshold=threshold)[:, 1, 1]
        assert found.tolist() == [0] * first + [1] * (9 - first)
