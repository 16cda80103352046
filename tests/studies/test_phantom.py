"""The simulated brain: contrast as physics has it, truth as the mask has it, the same bytes from the same seed."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from scipy import ndimage

from tomoglot.geometry import resample
from tomoglot.studies.phantom import brain, generate
from tomoglot.studies.phantom.anatomy import MassEffect, build_head, push_of
from tomoglot.studies.phantom.brain import cube, lobe_of, template
from tomoglot.studies.phantom.disease import draw_disease, draw_kinds
from tomoglot.studies.phantom.drawing import measure
from tomoglot.studies.phantom.fields import smooth_field, spline_rows
from tomoglot.studies.phantom.lesions import MASK_LABELS
from tomoglot.studies.phantom.signal import REAL_RATIOS, SEQUENCES, TISSUES, jittered, signals

SPACING_MM = 4.0


@pytest.fixture(scope="module")
def studies():
    """Forty studies of every kind at 4 mm."""
    return [generate(7, index, spacing_mm=SPACING_MM) for index in range(40)]


def on_mask_grid(study, sequence):
    volume = study.volumes[sequence]
    return resample(volume.voxels, volume.affine, study.mask.grid)


def contrast(studies, finding, labels, sequence):
    """Mean over studies of (lesion / brain around it), for studies with the finding and the sequence."""
    ratios = []
    for study in studies:
        lesion = ndimage.binary_erosion(np.isin(study.mask.voxels, [MASK_LABELS[name] for name in labels]))
        if study.labels[finding] and sequence in study.volumes and lesion.sum() >= 8:
            image = on_mask_grid(study, sequence)
            healthy = (study.mask.voxels == 0) & (image > 0)
            ratios.append(image[lesion].mean() / np.median(image[healthy]))
    assert ratios, f"no study shows {finding} on {sequence}"
    return float(np.mean(ratios))


@pytest.mark.parametrize(("sequence", "tissue"), sorted(REAL_RATIOS))
def test_simulated_ratios_stay_within_the_real_band(sequence, tissue):
    low, high = REAL_RATIOS[sequence, tissue]
    values = dict(zip(TISSUES, signals(sequence), strict=True))
    assert low <= values[tissue] / values["wm"] <= high


def test_csf_is_dark_on_flair_and_bright_on_t2():
    for sequence, low, high in (("flair", 0.0, 0.2), ("t2w", 2.0, 4.0)):
        assert low <= signals(sequence)[TISSUES.index("csf")] <= high
    # In images too: the middle of the ventricles against the median of the brain.
    atlas = template(SPACING_MM)
    deep = ndimage.binary_erosion(atlas.ventricles > 0.3)
    seen = 0
    for index in range(12):
        study = generate(3, index, spacing_mm=SPACING_MM, only="normal")
        for sequence, bright in (("flair", False), ("t2w", True)):
            if sequence in study.volumes:
                image = on_mask_grid(study, sequence)
                assert (np.median(image[deep]) > np.median(image[image > 0])) == bright
                seen += 1
    assert seen > 10


def test_only_the_contrast_enhanced_sequence_shows_enhancement():
    rim, white = TISSUES.index("rim"), TISSUES.index("wm")
    assert signals("t1c")[rim] > 1.6 * signals("t1c")[white]
    assert signals("t1w")[rim] < signals("t1w")[white]


def test_a_rim_enhances_in_the_image_on_t1c_and_not_on_t1w():
    masses = [generate(5, index, spacing_mm=SPACING_MM, only="mass") for index in range(8)]
    enhanced, plain = [], []
    for study in masses:
        rim = study.mask.voxels == MASK_LABELS["rim"]
        for sequence, ratios in (("t1c", enhanced), ("t1w", plain)):
            if sequence in study.volumes and rim.any():
                image = on_mask_grid(study, sequence)
                ratios.append(image[rim].mean() / np.median(image[(study.mask.voxels == 0) & (image > 0)]))
    assert min(enhanced) > 1.3
    assert max(plain) < 1.1


def test_an_infarct_is_bright_on_dwi(studies):
    assert contrast(studies, "infarct", ["infarct"], "dwi") > 1.5


def test_a_haemorrhage_is_dark_on_t2s(studies):
    assert contrast(studies, "haemorrhage", ["blood"], "t2s") < 0.7


def test_lesion_volume_is_what_truth_says_and_what_its_diameters_give(studies):
    seen = 0
    voxel_ml = SPACING_MM**3 / 1000.0
    for study in studies:
        for finding in study.truth["findings"]:
            if finding["volume_ml"] is None:
                continue
            if finding["type"] != "demyelination":
                ellipsoid = np.pi / 6.0 * np.prod(finding["diameters_mm"]) / 1000.0
                assert ellipsoid == pytest.approx(finding["volume_ml"], rel=0.1)
            seen += 1
        for kind in ("mass", "infarct", "haemorrhage", "oedema", "demyelination"):
            told = [f for f in study.truth["findings"] if f["type"] == kind]
            labels = sorted({label for f in told for label in f["mask_labels"]})
            volume = np.isin(study.mask.voxels, labels).sum() * voxel_ml if told else 0.0
            assert sum(f["volume_ml"] for f in told) == pytest.approx(volume, rel=0.1, abs=0.5)
    assert seen > 20


def test_measure_gives_a_ball_its_diameter():
    grid = cube(2.0)
    i, j, k = np.ogrid[: grid.shape[0], : grid.shape[1], : grid.shape[2]]
    size = measure((i - 40) ** 2 + (j - 50) ** 2 + (k - 45) ** 2 <= 8.2**2, grid.affine)
    assert size is not None
    np.testing.assert_allclose(size.diameters_mm, 2 * 2 * 8.2, rtol=0.03)
    np.testing.assert_allclose(size.centroid_mm, grid.affine[:3, 3] + 2.0 * np.array([40, 50, 45]), atol=1e-6)


def test_the_same_seed_gives_the_same_study_and_another_index_another():
    once, again, other = (generate(2, index, spacing_mm=SPACING_MM) for index in (4, 4, 5))
    assert once.report.text == again.report.text
    assert once.truth == again.truth
    for sequence, volume in once.volumes.items():
        assert np.array_equal(volume.voxels, again.volumes[sequence].voxels)
    assert not np.array_equal(once.mask.voxels, other.mask.voxels) or once.report.text != other.report.text


def test_some_sequences_are_missing_and_never_all(studies):
    counts = np.array([len(study.volumes) for study in studies])
    assert counts.min() >= 1
    assert 0.6 < counts.mean() / len(SEQUENCES) < 0.9


def test_thick_slices_keep_their_native_spacing_and_place():
    for index in range(30):
        study = generate(11, index, spacing_mm=3.0, only="normal")
        thick = {n: a["slice_mm"] for n, a in study.truth["acquisition"].items() if (a["slice_mm"] or 0) > 3.6}
        if thick and "t1w" in study.volumes:
            break
    name, slice_mm = next(iter(thick.items()))
    volume = study.volumes[name]
    assert volume.affine[2, 2] == pytest.approx(slice_mm)
    flat = on_mask_grid(study, name) > 0
    solid = study.volumes["t1w"].voxels > 0
    assert 2 * (flat & solid).sum() / (flat.sum() + solid.sum()) > 0.93


def test_outside_the_brain_is_zero_when_skull_stripped_and_noise_otherwise():
    stripped = generate(1, 0, spacing_mm=SPACING_MM)
    noisy = generate(1, 0, spacing_mm=SPACING_MM, skull_stripped=False)
    for sequence in stripped.volumes:
        assert stripped.volumes[sequence].voxels[0, 0, 0] == 0
        assert (noisy.volumes[sequence].voxels[:3] > 0).mean() > 0.5


def test_motion_moves_a_series_and_nothing_else():
    still, moved = (generate(1, 3, spacing_mm=SPACING_MM, motion_mm=m) for m in (0.0, 1.0))
    assert np.array_equal(still.mask.voxels, moved.mask.voxels)
    assert still.report == moved.report
    sequence = next(iter(still.volumes))
    assert not np.array_equal(still.volumes[sequence].voxels, moved.volumes[sequence].voxels)


def test_midline_shift_points_away_from_the_mass_and_follows_the_displacement():
    atlas = template(SPACING_MM)
    for side in (-1, 1):
        effect = MassEffect(centre_mm=(side * 34.0, 5.0, 20.0), radius_mm=20.0, push_mm=10.0)
        head = build_head(atlas, np.random.default_rng(0), effects=[effect])
        assert -side * head.midline_shift_mm > 2.5
        # Slow definition: where the tissue of the septum is seen with and without the mass.
        plain = build_head(atlas, np.random.default_rng(0))
        assert head.midline_shift_mm == pytest.approx(septum_x(head) - septum_x(plain), abs=1.0)


def septum_x(head):
    """World x at which the septum is seen: a line fitted through the voxels that see its surroundings."""
    gap = head.template_mm - np.asarray(brain.SEPTUM_MM, dtype=np.float32)
    nearest = np.argsort((gap**2).sum(axis=1))[:24]
    design = np.column_stack([gap[nearest], np.ones(24)])
    return np.linalg.lstsq(design, head.near_mm[nearest, 0], rcond=None)[0][3]


def test_a_push_never_folds():
    effect = MassEffect(centre_mm=(0.0, 0.0, 0.0), radius_mm=22.0, push_mm=0.75 * 22.0)
    line = np.stack([np.linspace(0.1, 120, 400), np.zeros(400), np.zeros(400)], axis=1)
    seen = line - push_of(line, np.zeros(3), effect)
    assert (np.diff(seen[:, 0]) > 0).all()


def test_volume_loss_widens_the_ventricles_and_thins_the_cortex():
    atlas = template(SPACING_MM)
    whole, lost = (build_head(atlas, np.random.default_rng(4), volume_loss=loss) for loss in (0.0, 0.8))
    assert lost.ventricles.sum() > 1.4 * whole.ventricles.sum()
    assert lost.gm.sum() < 0.95 * whole.gm.sum()


def test_tissue_fractions_of_a_head_sum_to_at_most_one():
    head = build_head(template(SPACING_MM), np.random.default_rng(1))
    total = head.gm + head.wm + head.csf
    assert total.min() >= 0
    assert total.max() <= 1 + 1e-4


def test_about_a_fifth_is_normal_and_findings_come_together():
    kinds = [draw_kinds(np.random.default_rng(index)) for index in range(2000)]
    assert np.mean([not kind for kind in kinds]) == pytest.approx(0.2, abs=0.03)
    assert np.mean([len(kind) > 1 for kind in kinds]) > 0.15
    both = {frozenset(kind) for kind in kinds}
    assert frozenset({"volume_loss", "infarct"}) in both
    assert frozenset({"volume_loss", "demyelination"}) in both


def test_demyelination_has_five_to_fifteen_plaques_and_a_mass_one_or_two():
    atlas = template(SPACING_MM)
    plaques = [len(draw_disease(np.random.default_rng(i), atlas, ["demyelination"]).lesions) for i in range(40)]
    masses = [len(draw_disease(np.random.default_rng(i), atlas, ["mass"]).lesions) for i in range(40)]
    assert (min(plaques), max(plaques)) == (5, 15)
    assert set(masses) == {1, 2}


def test_known_places_lie_in_their_lobes():
    places = {
        (35, 45, 20): "frontal",
        (-40, -50, 50): "parietal",
        (55, -15, -20): "temporal",
        (-15, -92, 5): "occipital",
        (38, 5, 0): "insula",
        (12, -18, 8): "deep",
        (-25, -65, -38): "cerebellum",
        (3, -28, -30): "brainstem",
    }
    assert list(lobe_of(np.array(list(places)))) == list(places.values())


def test_a_smooth_field_is_the_spline_through_its_control_values():
    shape, knots = (9, 11, 7), 5
    field = smooth_field(np.random.default_rng(3), shape, knots)
    values = np.random.default_rng(3).standard_normal((knots,) * 3, dtype=np.float32)
    a, b, c = (spline_rows(size, knots) for size in shape)
    np.testing.assert_allclose(field, np.einsum("ai,bj,ck,ijk->abc", a, b, c, values), atol=1e-4)


def test_jitter_is_four_percent():
    drawn = [jittered(np.random.default_rng(i))["wm"].t1_ms / 900.0 for i in range(500)]
    assert np.std(drawn) == pytest.approx(0.04, abs=0.006)


def test_without_nilearn_the_error_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ValueError, match=r"tomoglot\[demo\]"):
        brain.maps_folder()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"spacing_mm": 0.5}, "1 to 8 mm"),
        ({"only": "gout"}, "gout"),
        ({"split_fractions": {"train": 0.5}}, "sum to 1"),
    ],
)
def test_bad_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        generate(0, 0, **({"spacing_mm": SPACING_MM} | arguments))
