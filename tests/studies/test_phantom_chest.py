"""The simulated chest: tissues have their Hounsfield units, and every finding is seen where its mask says."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from tomoglot.geometry import Grid, resample
from tomoglot.studies.lesion import LESIONS, REGIONS, region_numbers
from tomoglot.studies.phantom.chest.cohort import draw_scene, generate
from tomoglot.studies.phantom.chest.disease import draw_findings, draw_ratio
from tomoglot.studies.phantom.chest.scan import Reconstruction, draw_session, noise_of, reconstruct
from tomoglot.studies.phantom.chest.scene import FINDINGS, MASK_LABELS, UNMASKED
from tomoglot.studies.phantom.chest.thorax import LOBES, Build, build_thorax, field_of_view, lobes_of
from tomoglot.studies.phantom.chest.tissue import TISSUES_HU, draw_table
from tomoglot.studies.phantom.chest.trees import grow, splat_tubes
from tomoglot.studies.phantom.simulated import stream

SPACING_MM = 5.0


@pytest.fixture(scope="module")
def normal():
    """A thorax without findings, before it is scanned."""
    return draw_scene(3, 1, spacing_mm=4.0, kinds=(), breath=0.1)


@pytest.fixture(scope="module")
def alone():
    """Two studies of each finding by itself."""
    return {kind: [generate(2, index, spacing_mm=SPACING_MM, only=kind) for index in range(2)] for kind in FINDINGS}


def on_mask_grid(study):
    volume = study.volumes["ct"]
    return resample(volume.voxels.astype(np.float32), volume.affine, study.mask.grid, outside=-1000.0)


def test_tissues_lie_on_their_side_of_the_thresholds_that_clinics_use():
    """The mean, and every value within two deviations, which is as far as a subject's may be."""
    low = {name: value - 2 * spread for name, (value, spread) in TISSUES_HU.items()}
    high = {name: value + 2 * spread for name, (value, spread) in TISSUES_HU.items()}
    assert high["bulla"] < -950  # emphysema
    assert low["calcium"] > 130  # Agatston
    assert low["effusion"] >= 0 and high["effusion"] < 20 < low["node"]
    assert high["effusion"] < low["heart"]
    assert low["fat"] > -120 and high["fat"] < -80
    assert low["muscle"] > 30 and high["muscle"] < 70
    assert low["metal"] > 2500 and low["cortex"] > 400 and low["granuloma"] > 130
    drawn = [draw_table(np.random.default_rng(seed)) for seed in range(50)]
    assert all(low[name] - 1e-6 <= table[name] <= high[name] + 1e-6 for table in drawn for name in table)


def test_organs_are_where_they_should_and_have_their_units(normal):
    thorax = normal.thorax
    within = ndimage.binary_erosion(thorax.lung > 0.95, iterations=2)
    assert np.median(thorax.hu[within]) == pytest.approx(-840, abs=45)
    assert np.median(thorax.hu[thorax.heart < -8]) == pytest.approx(44, abs=10)
    volume_l = thorax.lung.sum() * 4.0**3 / 1e6
    assert 2.6 < volume_l < 7.5
    shares = [float(thorax.lung[thorax.lobe == n].sum() / thorax.lung.sum()) for n in range(1, len(LOBES) + 1)]
    # Lobes of upright adults hold some 20, 8, 25, 22 and 25 % of the lungs.
    assert 0.05 < shares[1] < min(shares[0], shares[2], shares[3], shares[4])
    assert sum(shares[:3]) > sum(shares[3:])  # the heart lies on the left
    liver = (np.abs(thorax.hu - thorax.table["liver"]) < 0.5) & (thorax.dome < -8)
    x, _, z = thorax.seen
    assert x[liver].mean() > 20
    assert z[liver].max() < -40
    air = thorax.central_air > 0.5
    assert np.median(thorax.hu[air]) < -900
    bone = thorax.hu > 350
    assert 0.03 < bone.mean() / (thorax.body > 0.5).mean() < 0.15
    assert (thorax.hu[thorax.body < 0.01] == -1000).all()


def test_dependent_lung_is_denser_and_more_so_breathed_out():
    slopes, means = [], []
    for breath in (0.0, 0.9):
        thorax = draw_scene(3, 2, spacing_mm=SPACING_MM, kinds=(), breath=breath).thorax
        inside = ndimage.binary_erosion(thorax.lung > 0.95)
        front, back = (thorax.hu[inside & side] for side in (thorax.seen[1] > 30, thorax.seen[1] < -40))
        slopes.append(np.median(back) - np.median(front))
        means.append((np.median(thorax.hu[inside]), thorax.lung.sum()))
    assert 5 < slopes[0] < slopes[1]
    assert means[1][0] > means[0][0] + 50
    assert means[1][1] < 0.95 * means[0][1]  # the diaphragm has risen


def test_fissures_lie_between_lobes_and_are_denser_than_lung(normal):
    thorax = normal.thorax
    grid = field_of_view(4.0)
    table = draw_table(stream(3, 1, "chest tissue"))
    plain = build_thorax(grid, stream(3, 1, "chest anatomy"), table, Build(breath=0.1))
    border = np.zeros(grid.shape, dtype=bool)
    for axis in range(3):
        border |= np.roll(thorax.lobe, -1, axis) != thorax.lobe
    inside = ndimage.binary_erosion(plain.lung > 0.99, iterations=2)
    other = inside & ~ndimage.binary_dilation(border, iterations=3)
    assert np.median(plain.hu[inside & border]) > np.median(plain.hu[other]) + 15
    points = np.array([[60.0, -60, 70], [60, 60, -30], [60, -60, -40], [-60, 60, 60], [-60, -60, -40]])
    assert [LOBES[n - 1] for n in lobes_of(points.T[:, :, None, None])[:, 0, 0]] == list(LOBES)


def test_a_tree_serves_every_place_and_its_stem_all_of_them():
    rng = np.random.default_rng(0)
    places = rng.uniform(-40, 40, (37, 3))
    starts, ends, served = grow(np.array([0.0, 0, 60]), places, rng)
    assert served[0] == 37
    assert len(served) == 2 * 37 - 1
    tips = ends[served == 1]
    assert sorted(map(tuple, tips)) == sorted(map(tuple, places))
    for number in np.flatnonzero(served > 1):  # what leaves a fork is what came in
        leaving = np.flatnonzero((starts == ends[number]).all(axis=1))
        assert served[leaving].sum() == served[number]


@pytest.mark.parametrize("radius", [0.4, 1.5, 5.0])
def test_a_splatted_tube_keeps_its_volume_however_thin(radius):
    grid = Grid((24, 24, 24), np.diag([3.0, 3, 3, 1]))
    starts, ends = np.array([[20.0, 25, 15]]), np.array([[45.0, 40, 55]])
    share = splat_tubes(grid, starts, ends, np.array([radius]))
    wanted = np.pi * radius**2 * np.linalg.norm(ends - starts)
    assert share.max() <= 1.0
    assert share.sum() * 27 == pytest.approx(wanted, rel=0.08)
    middle = (np.argwhere(share > 0) * share[share > 0][:, None]).sum(axis=0) / share.sum() * 3
    np.testing.assert_allclose(middle, (starts + ends)[0] / 2, atol=0.5)


# Median of the mask against what lies about it: the least difference in HU, and its sign.
SEEN = {
    "medical_material": 200, "arterial_wall_calcification": 60, "coronary_artery_wall_calcification": 60,
    "pericardial_effusion": 60, "emphysema": -80, "atelectasis": 300, "lung_nodule": 350, "lung_opacity": 50,
    "pulmonary_fibrotic_sequela": 150, "pleural_effusion": 15, "peribronchial_thickening": 250, "consolidation": 250,
    "bronchiectasis": 80, "interlobular_septal_thickening": 50, "lymphadenopathy": 30,
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(SEEN))
def test_a_finding_differs_from_what_lies_about_its_mask(alone, kind):
    for study in alone[kind]:
        image, mask = on_mask_grid(study), study.mask.voxels == MASK_LABELS[kind]
        near = ndimage.binary_dilation(mask, iterations=2) & ~mask
        gap = (np.median(image[mask]) - np.median(image[near])) * np.sign(SEEN[kind])
        assert gap > abs(SEEN[kind]), gap


@pytest.mark.parametrize("kind", FINDINGS)
def test_the_same_subject_without_the_finding_differs_in_the_mask_and_hardly_elsewhere(kind):
    """Hounsfield units before the scan: the anatomy of a seed does not know what is drawn into it."""
    ill, well = (draw_scene(2, 5, spacing_mm=SPACING_MM, kinds=k, breath=0.1) for k in ((kind,), ()))
    change = np.abs(ill.thorax.hu - well.thorax.hu)
    if kind in UNMASKED:
        assert ill.thorax.ratio > 0.5 > well.thorax.ratio
        assert not ill.mask.any()
        return
    inside = ill.mask == MASK_LABELS[kind]
    assert change[inside].mean() > 8 * change[~ndimage.binary_dilation(inside, iterations=2)].mean()
    # Without contrast agent a node has the units of the vessels that it lies among.
    assert (change[inside] > (4 if kind == "lymphadenopathy" else 15)).mean() > 0.8
    assert not set(np.unique(ill.mask)) - {0, MASK_LABELS[kind]}


def test_mosaic_patches_are_darker_than_the_lung_between_them(alone):
    for study in alone["mosaic_attenuation_pattern"]:
        image, patch = on_mask_grid(study), study.mask.voxels > 0
        other = (image < -600) & (image > -990) & ~ndimage.binary_dilation(patch)
        assert np.median(image[other]) - np.median(image[ndimage.binary_erosion(patch)]) > 50


def test_a_hernia_lies_behind_the_heart_and_holds_gas_in_front_of_its_contents():
    gas = 0
    for index in range(4):
        scene = draw_scene(2, index, spacing_mm=4.0, kinds=("hiatal_hernia",), breath=0.1)
        inside = scene.mask > 0
        y = scene.thorax.seen[1]
        assert y[inside].mean() < y[scene.thorax.heart < 0].mean() - 15
        air = inside & (scene.thorax.hu < -700)
        gas += bool(air.any())
        if air.any():
            assert y[air].mean() > y[inside & ~air].mean()
    assert gas >= 2


def test_pleural_fluid_lies_at_the_back_between_lung_and_ribs(alone):
    for study in alone["pleural_effusion"]:
        points = np.argwhere(study.mask.voxels > 0)
        y = points[:, 1].mean() * SPACING_MM + study.mask.affine[1, 3]
        assert y < -25
        assert abs(np.median(on_mask_grid(study)[study.mask.voxels > 0])) < 80  # at 5 mm some share a voxel with lung


def test_emphysema_holds_voxels_below_the_clinical_threshold_that_normal_lung_has_not():
    low = []
    for kinds in (("emphysema",), ()):
        thorax = draw_scene(2, 5, spacing_mm=SPACING_MM, kinds=kinds, breath=0.1).thorax
        low.append(float((thorax.hu[thorax.lung > 0.9] < -950).mean()))
    assert low[0] > 0.05
    assert low[1] < 0.01


def test_cardiothoracic_ratio_parts_wide_hearts_from_others():
    wide, slim = ([draw_ratio(np.random.default_rng(seed), wide=wide) for seed in range(200)] for wide in (True, False))
    assert min(wide) > 0.53
    assert max(slim) < 0.49
    for wanted in (0.4, 0.46, 0.56, 0.62):
        grid = field_of_view(4.0)
        drawn = build_thorax(grid, stream(0, 1, "a"), draw_table(stream(0, 1, "b")), Build(ratio=wanted)).ratio
        assert drawn == pytest.approx(wanted, abs=0.045)


def test_truth_is_measured_from_the_mask(alone):
    for kind, studies in alone.items():
        for study in studies:
            (finding,) = study.truth["findings"]
            assert finding["type"] == kind
            assert study.labels[kind] == 1.0
            assert sum(study.labels.values()) == 1.0
            volume = np.isin(study.mask.voxels, finding["mask_labels"]).sum() * SPACING_MM**3 / 1000
            assert finding["volume_ml"] == pytest.approx(volume, rel=1e-3)
            if finding["side"] != "both" and finding["lobes"]:
                assert {lobe.split()[0] for lobe in finding["lobes"]} == {finding["side"]}
            assert set(study.truth["absent"]) == set(FINDINGS) - {kind}


def test_mask_numbers_are_new_ones_and_have_regions():
    assert min(MASK_LABELS.values()) == 16
    assert len(set(MASK_LABELS.values())) == len(FINDINGS) - len(UNMASKED)
    assert set(region_numbers("chest_finding")) == set(MASK_LABELS.values())
    assert set(REGIONS["lung_lesion"]) < set(MASK_LABELS)
    assert {name: LESIONS[name] for name in ("necrosis", "blood", "cystic", "hcc", "liver_abscess")} == {
        "necrosis": 1, "blood": 6, "cystic": 8, "hcc": 9, "liver_abscess": 15,
    }  # fmt: skip


def test_findings_occur_together_as_told_and_one_in_five_has_none():
    drawn = [set(draw_findings(np.random.default_rng(seed))) for seed in range(4000)]
    assert np.mean([not kinds for kinds in drawn]) == pytest.approx(0.2, abs=0.02)
    for kind in FINDINGS:
        assert 0.06 < np.mean([kind in kinds for kinds in drawn]) < 0.4, kind
    assert 1.8 < np.mean([len(kinds) for kinds in drawn]) < 4.0

    def share(kind, given):
        return np.mean([kind in kinds for kinds in drawn if given in kinds])

    assert share("atelectasis", "pleural_effusion") > 0.5
    assert share("cardiomegaly", "interlobular_septal_thickening") > 2 * np.mean(["cardiomegaly" in k for k in drawn])
    assert draw_findings(np.random.default_rng(0), "normal") == ()
    with pytest.raises(ValueError, match="no kind of simulated chest study"):
        draw_findings(np.random.default_rng(0), "gout")


def test_dose_and_kernel_make_the_noise():
    thorax = draw_scene(3, 1, spacing_mm=SPACING_MM, kinds=(), breath=0.1).thorax
    within = ndimage.binary_erosion(thorax.body > 0.99, iterations=2)
    rough, fine = (
        Reconstruction(kernel=kernel, slice_mm=1.0, noise_hu=noise, blur_mm=blur)
        for kernel, noise, blur in (("sharp", 40.0, 0.4), ("soft", 10.0, 5.0))
    )
    grains = {how.kernel: noise_of(thorax, how, np.random.default_rng(0)) for how in (rough, fine)}
    assert grains["sharp"][within].std() > 3 * grains["soft"][within].std()

    def likeness(kernel):  # of neighbouring voxels
        grain = grains[kernel]
        return np.corrcoef(grain[:-1].ravel(), grain[1:].ravel())[0, 1]

    assert abs(likeness("sharp")) < 0.1
    assert likeness("soft") > 0.4
    images = {
        how.kernel: reconstruct(thorax, how, np.random.default_rng(0), half_mm=160, air=False) for how in (rough, fine)
    }
    bone = {kernel: int((image.voxels > 450).sum()) for kernel, image in images.items()}
    assert bone["sharp"] > bone["soft"]
    doses = [draw_session(np.random.default_rng(seed), 0.0) for seed in range(300)]
    soft = [(how.dose, how.series[0].noise_hu) for how in doses if how.series[0].kernel == "soft"]
    assert np.corrcoef(np.log(soft).T)[0, 1] < -0.8


def test_a_narrow_field_and_thick_slices_leave_everything_where_it_is():
    thorax = draw_scene(3, 1, spacing_mm=4.0, kinds=(), breath=0.1).thorax
    pair = []
    for slice_mm, half_mm in ((1.0, 160.0), (5.0, 140.0)):
        how = Reconstruction(kernel="soft", slice_mm=slice_mm, noise_hu=0.0, blur_mm=0.4)
        pair.append(reconstruct(thorax, how, np.random.default_rng(0), half_mm=half_mm, air=False))
    whole, cut = pair
    assert whole.voxels.shape == (80, 64, 64)
    assert cut.voxels.shape == (70, 64, 51)
    assert np.diag(cut.affine)[:3].tolist() == [4.0, 4.0, 5.0]
    same = resample(whole.voxels, whole.affine, cut.grid)
    assert np.corrcoef(same[:, :, 2:-2].ravel(), cut.voxels[:, :, 2:-2].ravel())[0, 1] > 0.98


def test_consolidated_lung_keeps_air_in_its_airways():
    seen = 0
    for index in range(6):
        scene = draw_scene(2, index, spacing_mm=4.0, kinds=("consolidation",), breath=0.1)
        core = ndimage.binary_erosion(scene.mask > 0)
        wide = core & (scene.airways.lumen > 0.4)
        if wide.any():
            assert np.median(scene.thorax.hu[wide]) < np.median(scene.thorax.hu[core]) - 150
            seen += 1
    assert seen


def test_the_table_is_under_the_back_only_where_air_is_asked_for():
    with_air, without = (generate(3, 4, spacing_mm=SPACING_MM, only="normal", skull_stripped=s) for s in (False, True))
    image, plain = with_air.volumes["ct"].voxels, without.volumes["ct"].voxels
    assert np.array_equal(image[plain != -1000], plain[plain != -1000])
    apart = ndimage.binary_erosion(plain == -1000, border_value=1)  # of what shares a voxel with the skin
    middle = image.shape[1] // 2
    assert (image[:, :middle][apart[:, :middle]] > -800).any()
    assert not (image[:, middle:][apart[:, middle:]] > -800).any()
    assert image[apart].std() > 0 == plain[apart].std()


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="1 to 8 mm"):
        generate(0, 0, spacing_mm=0.5)
    with pytest.raises(ValueError, match="there is no sequence t1w; there are ct"):
        generate(0, 0, spacing_mm=8.0, sequences=("t1w",))
