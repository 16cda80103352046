"""Simulated radiographs: the geometry of their rays, shadows of the mask, and that they are of the CT's subject."""

import csv

import numpy as np
import pytest
from scipy import ndimage

from tomoglot.geometry import Grid, centred_grid, to_world
from tomoglot.studies.curate import examine
from tomoglot.studies.phantom import draw_montage, write_cohort
from tomoglot.studies.phantom.chest import cohort as ct
from tomoglot.studies.phantom.chest.radiograph import (
    HARDLY_VISIBLE,
    LEAST_MM,
    NO_TISSUE,
    PHOTONS,
    PIXEL_MM,
    RADIOGRAPHS,
    SIDE,
    SOURCE_MM,
    VIEWS,
    WATER_PER_MM,
    WHITE,
    Exposure,
    attenuation,
    draw_exposure,
    expose,
    generate,
    image_grid,
    opened,
    project,
    shadow,
)
from tomoglot.studies.phantom.chest.scene import FINDINGS, MASK_LABELS
from tomoglot.studies.source import read_source

SPACING_MM = 8.0
FRONTAL, LATERAL = VIEWS["cxr_frontal"], VIEWS["cxr_lateral"]


@pytest.fixture(scope="module")
def grid():
    return centred_grid(np.zeros(3), np.eye(3), (40, 32, 32), (8.0, 8.0, 8.0))


def ball(grid, centre, radius):
    places = to_world(grid.affine, np.stack(np.indices(grid.shape), axis=-1))
    return (np.linalg.norm(places - np.asarray(centre), axis=-1) <= radius).astype(np.float32)


def middle(image):
    """World place of the weight of an image, in its plane."""
    return image_grid().affine[:2, 3] + PIXEL_MM * np.array(ndimage.center_of_mass(image))


def ray_sum(values, grid, view, place):
    """The slow definition: walk from the source to the pixel in the middle plane and on, in steps of 1 mm."""
    source, pixel = np.zeros(3), np.zeros(3)
    source[view.along], pixel[view.across], pixel[2] = view.source_mm, *place
    ray = (pixel - source) / np.linalg.norm(pixel - source)
    along = np.arange(np.linalg.norm(source) - 200.0, np.linalg.norm(source) + 200.0)
    voxels = np.linalg.solve(grid.affine[:3, :3], (source + along[:, None] * ray - grid.affine[:3, 3]).T)
    return ndimage.map_coordinates(values, voxels, order=1, mode="constant").sum()


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_a_pixel_is_the_sum_along_its_ray_from_the_source(grid, view):
    rng = np.random.default_rng(0)
    # Smooth, and nothing at the rim, where the two would part by how they end.
    values = ndimage.gaussian_filter(rng.random(grid.shape), 3.0) * ball(grid, (0, 0, 0), 100.0)
    fast = project(values, grid, view)
    for i, j in ((60, 70), (111, 112), (150, 90), (88, 160)):
        place = PIXEL_MM * (np.array([i, j]) - (SIDE - 1) / 2)
        assert fast[i, j] == pytest.approx(ray_sum(values, grid, view, place), rel=0.03)
    assert fast[111, 112] > 10


def test_a_ray_aslant_is_longer_by_its_slant(grid):
    sums = project(np.ones(grid.shape, np.float32), grid, FRONTAL)
    thick = grid.shape[1] * grid.spacing_mm[1]
    for i, j in ((5, 5), (111, 111), (218, 60)):
        away = PIXEL_MM * (np.array([i, j]) - (SIDE - 1) / 2)
        assert sums[i, j] == pytest.approx(thick * np.sqrt(1 + (away @ away) / FRONTAL.source_mm**2), rel=1e-4)
    assert sums[5, 5] > 1.008 * thick


def test_the_front_and_the_left_side_lie_at_the_detector():
    assert FRONTAL.source_mm < 0 < LATERAL.source_mm, "the source stands behind, and on the right"


def test_what_is_nearer_to_the_source_is_drawn_larger(grid):
    at = 64.0
    for view in VIEWS.values():
        toward = np.sign(view.source_mm)
        centres = np.zeros((2, 3))
        centres[:, view.along] = 90 * toward, -90 * toward
        centres[:, view.across] = at
        near, far = (middle(project(ball(grid, centre, 30.0), grid, view))[0] for centre in centres)
        reach = abs(view.source_mm)
        assert near == pytest.approx(at * reach / (reach - 90), abs=1.0)
        assert far == pytest.approx(at * reach / (reach + 90), abs=1.0)
    assert reach < SOURCE_MM


def test_right_and_head_are_where_the_world_says(grid):
    x, y = middle(project(ball(grid, (60, 0, 40), 24.0), grid, FRONTAL))
    assert (x, y) == pytest.approx((60, 40), abs=1.0), "x is the subject's right, y the head"
    x, y = middle(project(ball(grid, (0, 50, -40), 24.0), grid, LATERAL))
    assert (x, y) == pytest.approx((50, -40), abs=1.0), "x is the front, y the head"


def test_attenuation_is_none_in_air_and_waters_own_in_water():
    np.testing.assert_allclose(
        attenuation(np.array([-1024.0, -1000.0, 0.0, 1000.0], np.float32)) / WATER_PER_MM, [0, 0, 1, 2]
    )


def test_noise_is_that_of_counted_photons():
    sums = np.full((SIDE, SIDE), 3.0, np.float32)
    sums[0] = 6.0  # so that the densest rays are not the ones that are measured
    spread = {}
    for photons in (1e4, 16e4):
        how = Exposure(photons=photons, white=1.0, gamma=1.0)
        image = expose(sums, how, np.random.default_rng(0), np.ones((SIDE, SIDE), bool))[1:].astype(float)
        spread[photons] = image.std() / image.mean() * (3.0 - NO_TISSUE)
    assert spread[1e4] == pytest.approx(np.exp(1.5) / 1e2, rel=0.15)
    assert spread[1e4] / spread[16e4] == pytest.approx(4.0, rel=0.1)


def test_black_is_no_tissue_and_the_collimator(grid):
    sums = np.zeros((SIDE, SIDE), np.float32)
    sums[:, 30:] = 0.2
    sums[:, 60:] = 4.0
    sums[:, 40:50] = NO_TISSUE + 1e-5  # hardly any tissue is still tissue
    how = Exposure(photons=1e14, white=1.0, gamma=1.0)  # without noise
    through = opened(grid, FRONTAL)
    image = expose(sums, how, np.random.default_rng(0), through)
    assert not image[~through].any() and not image[:, :30].any()
    assert image[through & (sums > 0)].min() == 1 and image.max() == WHITE
    # The phantom is 320 x 256 mm.
    assert through.any(axis=1).sum() * PIXEL_MM == pytest.approx(320, abs=3)
    assert through.any(axis=0).sum() * PIXEL_MM == pytest.approx(256, abs=3)


def test_a_shadow_is_where_a_ray_passes_enough_and_the_smaller_lies_on_top(grid):
    mask = (3 * ball(grid, (0, 0, 0), 80.0)).astype(np.uint8)
    mask[ball(grid, (20, 0, 0), 20.0) > 0] = 5
    cast = shadow(mask, grid, FRONTAL)
    assert set(np.unique(cast)) == {0, 3, 5}
    assert middle(cast == 5)[0] == pytest.approx(20, abs=2)
    assert (cast == 3).sum() > 10 * (cast == 5).sum()
    np.testing.assert_array_equal(cast > 0, project(mask > 0, grid, FRONTAL) >= LEAST_MM)
    # Half of a thin thing's longest way is enough.
    thin = Grid(grid.shape, grid.affine @ np.diag([1, 0.25, 1, 1]))
    sheet = np.zeros(grid.shape, np.uint8)
    sheet[18:22, 15, 14:18] = 7
    assert 2.0 <= project(sheet > 0, thin, FRONTAL).max() < 0.5 * LEAST_MM
    assert (shadow(sheet, thin, FRONTAL) == 7).sum() > 100
    assert not shadow(np.zeros_like(mask), grid, FRONTAL).any()


@pytest.fixture(scope="module")
def pairs():
    indices = range(3, 6)
    return [
        (generate(9, index, spacing_mm=SPACING_MM), ct.generate(9, index, spacing_mm=SPACING_MM)) for index in indices
    ]


def test_a_study_is_of_the_subject_of_the_ct_and_says_so_in_nearly_its_words(pairs):
    for study, scan in pairs:
        assert (study.subject, study.split, study.labels) == (scan.subject, scan.split, scan.labels)
        assert study.study != scan.study, "both may lie in one store"
        assert study.report.findings == scan.report.findings
        assert study.truth["findings"] == scan.truth["findings"]
        assert "adiograph" in study.report.text.partition("FINDINGS")[0] or "X-ray" in study.report.text
        assert "CT" not in study.report.text and "Simulated" in study.report.text
        assert study.truth["simulated"] is True and study.also is None
        hard = set(study.truth["hardly_visible"])
        assert hard == {name for name in HARDLY_VISIBLE if study.labels[name]}
    assert set(HARDLY_VISIBLE) < set(FINDINGS)


def test_both_views_share_one_grid_of_one_voxel_along_k(pairs):
    for study, _ in pairs:
        assert list(study.volumes) == ["cxr_frontal", "cxr_lateral"]
        for volume in (*study.volumes.values(), study.mask):
            assert volume.voxels.shape == (SIDE, SIDE, 1) and volume.grid.same_as(image_grid())
        assert study.volumes["cxr_frontal"].voxels.dtype == np.int16
        assert set(np.unique(study.mask.voxels)) <= {0, *MASK_LABELS.values()}
        assert not np.array_equal(study.volumes["cxr_frontal"].voxels, study.volumes["cxr_lateral"].voxels)
        assert study.truth["mask_of"] == "cxr_frontal"


def test_a_finding_on_one_side_has_its_shadow_there():
    for index in range(40):
        study = generate(2, index, spacing_mm=SPACING_MM, only="pleural_effusion", sequences=["cxr_frontal"])
        (finding,) = (one for one in study.truth["findings"] if one["type"] == "pleural_effusion")
        if finding["side"] != "both":
            cast = study.mask.voxels[:, :, 0] == MASK_LABELS["pleural_effusion"]
            assert cast.any() and np.sign(middle(cast)[0]) == {"right": 1, "left": -1}[finding["side"]]
            # Fluid shades the lung: the same subject without it is darker there.
            well = generate(2, index, spacing_mm=SPACING_MM, only="normal", sequences=["cxr_frontal"])
            ill, clear = (one.volumes["cxr_frontal"].voxels[:, :, 0][cast].mean() for one in (study, well))
            assert ill > clear + 0.02 * WHITE
            return
    raise AssertionError("no effusion on one side")


def test_the_lateral_alone_has_its_own_mask(pairs):
    alone = generate(9, 3, spacing_mm=SPACING_MM, sequences=["cxr_lateral"])
    assert list(alone.volumes) == ["cxr_lateral"] and alone.truth["mask_of"] == "cxr_lateral"
    np.testing.assert_array_equal(alone.volumes["cxr_lateral"].voxels, pairs[0][0].volumes["cxr_lateral"].voxels)
    assert not np.array_equal(alone.mask.voxels, pairs[0][0].mask.voxels)
    with pytest.raises(ValueError, match="cxr_lateral"):
        generate(9, 3, spacing_mm=SPACING_MM, sequences=["ct"])


def test_exposure_and_processing_never_see_the_disease(pairs):
    wanted = pairs[0][0].truth
    for kind in ("normal", "cardiomegaly"):
        other = generate(9, 3, spacing_mm=SPACING_MM, only=kind).truth
        assert (other["acquisition"], other["dose"]) == (wanted["acquisition"], wanted["dose"])
    drawn = [draw_exposure(np.random.default_rng(seed), 1.0) for seed in range(20)]
    assert len({how.gamma for how in drawn}) == len({how.white for how in drawn}) == 20
    assert draw_exposure(np.random.default_rng(0), 0.5).photons == PHOTONS / 2


def test_the_cohort_is_written_read_back_and_accepted(tmp_path):
    table = write_cohort(tmp_path, subjects=3, seed=9, spacing_mm=SPACING_MM, cohort="radiographs")
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["sequence"] for row in rows[:2]] == ["cxr_frontal", "cxr_lateral"] and len(rows) == 6
    assert {key for key in rows[0] if key.startswith("label:")} == {f"label:{name}" for name in RADIOGRAPHS.findings}
    for study in read_source(tmp_path).studies:
        found = examine(study)
        assert study.simulated and not found.rejected and found.mask is not None
        assert all(volume.grid.is_flat for volume in found.volumes.values())
    png = draw_montage(tmp_path, tmp_path / "montage.png", rows=2)
    assert b"simulated" in png.read_bytes()
