"""Pictures and single slices become volumes of one voxel along k, upright, and nothing that is no radiograph passes."""

import numpy as np
import pytest
from PIL import Image

from tomoglot.geometry import spacing_mm
from tomoglot.studies.curate import examine
from tomoglot.studies.nifti import read_nifti, write_nifti
from tomoglot.studies.radiograph import LONGER_MM, RAY_MM, is_radiograph, read_radiograph
from tomoglot.studies.source import read_source
from tomoglot.studies.stated import read_series
from tomoglot.studies.study import Rejected, Series, Stated, Study, Volume


def grey(rows=30, columns=40):
    return (np.arange(rows * columns, dtype=np.int64).reshape(rows, columns) * 7 % 251).astype(np.uint8)


def save(path, pixels, **how):
    Image.fromarray(pixels).save(path, **how)
    return path


def reason(path, **how):
    with pytest.raises(Rejected) as told:
        read_radiograph(path, **how)
    assert path.parent.name not in told.value.evidence
    return told.value.reason


def at(volume, x, y):
    """The voxel that is nearest to a place of the image's plane."""
    i, j = np.round(np.linalg.solve(volume.affine[:2, :2], np.array([x, y]) - volume.affine[:2, 3])).astype(int)
    return volume.voxels[i, j, 0]


def test_a_picture_stands_upright_with_the_subjects_right_on_its_left(tmp_path):
    pixels = np.zeros((30, 40), np.uint8)
    pixels[2, 3] = 200  # in the picture's upper left: the subject's right, towards the head
    volume = read_radiograph(save(tmp_path / "a.png", pixels))
    assert volume.voxels.shape == (40, 30, 1) and volume.voxels.dtype == np.uint8
    (place,) = np.argwhere(volume.voxels == 200)
    x, y, z = (volume.affine @ np.append(place, 1.0))[:3]
    assert x > 0 and y > 0 and z == 0
    # As every store's picture shows a slice: right on the left, up.
    from tomoglot.store.inspect import shown

    np.testing.assert_array_equal(shown(volume.voxels[:, :, 0]), pixels)


@pytest.mark.parametrize("shape", [(30, 40), (40, 30)])
def test_without_a_stated_size_the_longer_side_is_that_of_a_full_detector(tmp_path, shape):
    volume = read_radiograph(save(tmp_path / "a.png", grey(*shape)))
    assert spacing_mm(volume.affine) == pytest.approx((LONGER_MM / 40, LONGER_MM / 40, RAY_MM))
    np.testing.assert_allclose(volume.grid.centre_mm(), 0, atol=1e-9)


def test_a_stated_size_is_taken_and_a_wrong_one_refused(tmp_path):
    path = save(tmp_path / "a.png", grey())
    assert spacing_mm(read_radiograph(path, stated_mm=(0.2, 0.3, 1)).affine) == pytest.approx((0.2, 0.3, 1))
    assert reason(path, stated_mm=(0.2, float("nan"), 1)) == "bad-spacing"
    series = Series(sequence="cxr_frontal", path=path, stated=Stated(spacing_mm=(0.2, 0.2, 1)))
    assert spacing_mm(read_series(series).affine)[0] == pytest.approx(0.2)


def test_every_way_to_store_grey_reads_as_the_same(tmp_path):
    pixels = grey()
    plain = read_radiograph(save(tmp_path / "l.png", pixels)).voxels
    rgb = np.repeat(pixels[:, :, None], 3, axis=2)
    alpha = np.concatenate([rgb, np.full((30, 40, 1), 255, np.uint8)], axis=2)
    Image.fromarray(pixels).convert("P").save(tmp_path / "p.png")
    for path in (save(tmp_path / "rgb.png", rgb), save(tmp_path / "rgba.png", alpha), tmp_path / "p.png"):
        np.testing.assert_array_equal(read_radiograph(path).voxels, plain)
    deep = read_radiograph(save(tmp_path / "deep.png", pixels.astype(np.uint16) * 200)).voxels
    np.testing.assert_array_equal(deep, plain.astype(np.int32) * 200)
    smooth = np.tile(np.arange(40, dtype=np.uint8) * 5, (30, 1))
    jpg = read_radiograph(save(tmp_path / "a.JPG", np.repeat(smooth[:, :, None], 3, 2), quality=95)).voxels
    assert np.abs(jpg[:, :, 0].astype(int) - smooth[::-1, ::-1].T).max() <= 4


def test_what_is_no_whole_grey_upright_picture_is_refused_with_a_reason(tmp_path):
    colour = np.repeat(grey()[:, :, None], 3, axis=2)
    colour[5, 5] = (200, 0, 0)
    assert reason(save(tmp_path / "colour.png", colour)) == "colour-image"
    assert reason(save(tmp_path / "flat.png", np.full((8, 9), 7, np.uint8))) == "constant-image"
    assert reason(tmp_path / "none.png") == "absent"
    whole = save(tmp_path / "whole.jpg", grey(), quality=90).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "words.png").write_text("no picture")
    assert reason(tmp_path / "cut.jpg") == reason(tmp_path / "words.png") == "damaged-image"
    tags = Image.Exif()
    tags[0x0112] = 6
    assert reason(save(tmp_path / "turned.jpg", grey(), exif=tags)) == "turned-image"
    tags[0x0112] = 1
    read_radiograph(save(tmp_path / "upright.jpg", grey(), exif=tags))


def test_a_huge_picture_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("tomoglot.studies.radiograph.MOST_PIXELS", 1000)
    assert reason(save(tmp_path / "big.png", grey())) == "too-large"


@pytest.mark.parametrize(
    ("columns", "shape"),
    [
        # frontal: rows and columns along the subject's right and head, the ray along y
        ([(-2, 0, 0), (0, 0, -3), (0, 5, 0)], (2, 3)),
        # lateral: along front and head, the ray along x
        ([(0, 0, 3), (0, -2, 0), (5, 0, 0)], (2, 3)),
        # lying in x and y: its own coordinates already
        ([(2, 0, 0), (0, 3, 0), (0, 0, 5)], (2, 3)),
    ],
)
def test_a_slice_of_nifti_is_turned_into_its_plane_and_keeps_its_places(tmp_path, columns, shape):
    affine = np.eye(4)
    affine[:3, :3] = np.array(columns, float).T
    affine[:3, 3] = (11.0, 22.0, 33.0)
    voxels = np.arange(6 * 5, dtype=np.int16).reshape(6, 5, 1)
    write_nifti(tmp_path / "a.nii.gz", Volume(voxels=voxels, affine=affine))
    volume = read_radiograph(tmp_path / "a.nii.gz")
    assert volume.voxels.shape[2] == 1 and spacing_mm(volume.affine) == pytest.approx((*shape, 5))
    across, up = {1: (0, 2), 0: (1, 2), 2: (0, 1)}[int(np.argmax(np.abs(columns[2])))]
    for index in ((0, 0), (5, 0), (2, 4)):
        world = affine @ (*index, 0, 1)
        assert at(volume, world[across], world[up]) == voxels[(*index, 0)]


def test_one_slice_is_a_radiograph_only_where_it_is_called_one(tmp_path):
    path = tmp_path / "a.nii.gz"
    write_nifti(path, Volume(voxels=np.arange(30, dtype=np.int16).reshape(6, 5, 1), affine=np.eye(4)))
    assert read_series(Series(sequence="cxr_frontal", path=path)).voxels.shape == (6, 5, 1)
    with pytest.raises(Rejected, match="wrong-dimension"):
        read_series(Series(sequence="t1w", path=path))
    deep = tmp_path / "deep.nii.gz"
    write_nifti(deep, Volume(voxels=np.arange(60, dtype=np.int16).reshape(6, 5, 2), affine=np.eye(4)))
    with pytest.raises(Rejected, match="wanted one image"):
        read_series(Series(sequence="cxr_frontal", path=deep))
    assert read_nifti(deep).voxels.shape == (6, 5, 2)
    assert is_radiograph("anything", tmp_path / "a.JPEG") and not is_radiograph("ct", deep)


def test_a_mask_lies_on_its_picture(tmp_path):
    save(tmp_path / "a.png", grey())
    drawn = np.zeros((30, 40), np.uint8)
    drawn[1:5, 2:9] = 3
    save(tmp_path / "m.png", drawn)
    series = (Series(sequence="cxr_frontal", path=tmp_path / "a.png"),)
    found = examine(
        Study(subject="s", study="1", series=series, mask=tmp_path / "m.png", mask_labels={3: "pleural_effusion"})
    )
    assert not found.rejected
    assert found.mask.voxels.shape == (40, 30, 1) and np.unique(found.mask.voxels).size == 2
    np.testing.assert_array_equal(found.mask.voxels[::-1, ::-1, 0].T > 0, drawn > 0)
    save(tmp_path / "e.png", np.zeros_like(drawn))
    assert not examine(Study(subject="s", study="1", series=series, mask=tmp_path / "e.png")).rejected


def test_a_table_of_pictures_needs_no_layout(tmp_path):
    save(tmp_path / "one.png", grey())
    save(tmp_path / "two.jpg", grey())
    (tmp_path / "studies.csv").write_text(
        "subject,sequence,path,report\na,CXR-PA,one.png,Clear lungs.\na,CXR Lateral,two.jpg,Clear lungs.\n"
    )
    (study,) = read_source(tmp_path).studies
    found = examine(study)
    assert not found.rejected and set(found.volumes) == {"cxr_frontal", "cxr_lateral"}
    assert found.volumes["cxr_frontal"].grid.same_as(found.volumes["cxr_lateral"].grid)
