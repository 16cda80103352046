"""The simulated liver: each kind of lesion behaves over the phases as the textbook has it, truth is what was drawn."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import ndimage

from tomoglot.geometry import resample
from tomoglot.studies.lesion import region_numbers
from tomoglot.studies.phantom.drawing import measure
from tomoglot.studies.phantom.liver import scan
from tomoglot.studies.phantom.liver.cohort import FINDINGS, LOBES, draw_fats, generate
from tomoglot.studies.phantom.liver.lesions import MASK_LABELS, MASKS, draw_kinds
from tomoglot.studies.phantom.liver.signal import FIELDS_T, PHASES, SEQUENCES, TABLE, Scanner, jittered, signal, signals
from tomoglot.studies.phantom.liver.torso import build_torso, field_of_view, segment_of
from tomoglot.studies.phantom.liver.uptake import Circulation, Timing, Uptake, aorta_mm, followed
from tomoglot.studies.phantom.simulated import stream

SPACING_MM = 5.0
VISITS = [
    (Scanner(field_t=field_t), Circulation(Timing(arterial=arterial, portal_venous=portal, delayed=delayed)))
    for field_t in FIELDS_T
    for arterial, portal, delayed in ((32.0, 65.0, 180.0), (37.0, 77.0, 285.0))
]


@pytest.fixture(scope="module")
def studies():
    """Three studies of each kind with all eight series and still breath."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan, "MISSING_SHARE", 0.0)
        return [
            generate(3, index, spacing_mm=SPACING_MM, only=kind, motion_mm=0.0)
            for kind in (*MASKS, "normal")
            for index in range(3)
        ]


def to_liver(name, scanner, blood):
    """Signal relative to the liver in each dynamic phase, in their order."""
    return np.array([signal(phase, name, scanner, blood) / signal(phase, "liver", scanner, blood) for phase in PHASES])


def on_mask_grid(study, sequence):
    volume = study.volumes[sequence]
    return resample(volume.voxels.astype(np.float32), volume.affine, study.mask.grid)


@pytest.mark.parametrize(("scanner", "blood"), VISITS)
class TestTimeIntensityCurves:
    def test_hcc_is_bright_in_the_arterial_phase_and_washes_out_inside_a_late_capsule(self, scanner, blood):
        before, arterial, portal, delayed = to_liver("hcc", scanner, blood)
        assert before < 0.95
        assert arterial > 1.1
        assert max(portal, delayed) < 0.9
        capsule = to_liver("capsule", scanner, blood)
        assert capsule[3] > 1.0 > capsule[1]
        assert capsule[3] > 1.2 * delayed

    def test_icc_is_bright_at_its_border_first_and_fills_late(self, scanner, blood):
        border, middle = to_liver("icc", scanner, blood), to_liver("icc_core", scanner, blood)
        assert border[1] > 1.0
        assert border[1] > 1.25 * middle[1]
        rising = [signal(phase, "icc_core", scanner, blood) for phase in PHASES]
        assert rising[0] <= rising[1] < 0.8 * rising[2] < 0.8 * rising[3]
        assert middle[3] > 1.05 > max(border[3], middle[2])

    def test_a_metastasis_has_an_arterial_rim_and_a_dark_middle(self, scanner, blood):
        rim, middle = to_liver("metastasis", scanner, blood), to_liver("metastasis_core", scanner, blood)
        assert rim[1] > 1.05
        assert max(rim[2:]) < 0.95
        assert max(middle) < 0.85

    def test_cysts_and_pus_take_up_nothing(self, scanner, blood):
        for name in ("cyst", "pus"):
            values = [signal(phase, name, scanner, blood) for phase in PHASES]
            assert np.ptp(values) == 0.0
            assert max(to_liver(name, scanner, blood)) < 0.7

    def test_haemangioma_fills_from_the_border_and_keeps_the_agent_like_blood(self, scanner, blood):
        shells = np.array([to_liver(f"haemangioma_{n}", scanner, blood) for n in range(4)])
        bright = shells > 1.1
        assert bright[:, 0].tolist() == [False] * 4
        assert bright[:, 1].tolist() == [True, False, False, False]
        assert bright[:, 2].tolist() == [True, True, False, False]
        assert bright[:3, 3].all()
        assert shells[:3, 3] == pytest.approx(to_liver("aorta", scanner, blood)[3], rel=0.25)

    def test_fnh_flashes_evenly_fades_to_the_liver_and_its_scar_is_late(self, scanner, blood):
        before, arterial, portal, delayed = to_liver("fnh", scanner, blood)
        scar = to_liver("scar", scanner, blood)
        assert arterial > 1.3
        assert (before, portal, delayed) == pytest.approx((1.0, 1.0, 1.0), abs=0.1)
        assert scar[1] < 0.65 * arterial
        assert scar[3] > 1.05 > scar[2]

    def test_an_abscess_has_a_wall_that_stays_bright(self, scanner, blood):
        assert min(to_liver("wall", scanner, blood)[1:]) > 1.0

    def test_organs_are_seen_as_they_should(self, scanner, blood):
        liver = [signal(phase, "liver", scanner, blood) for phase in PHASES]
        assert np.argmax(liver) == 2  # its own peak is in the portal venous phase
        aorta, portal, veins = (to_liver(name, scanner, blood) for name in ("aorta", "portal", "veins"))
        assert np.argmax(aorta) == 1
        assert aorta[1] > max(portal[1], veins[1])
        assert portal[2] > 1.2
        kidney = to_liver("cortex", scanner, blood)[1] / to_liver("medulla", scanner, blood)[1]
        assert kidney > 1.4  # corticomedullary difference
        assert to_liver("spleen", scanner, blood)[0] < 0.9  # the liver is brighter than the spleen on T1

    def test_t2_goes_from_water_over_blood_and_tumour_to_the_liver(self, scanner, blood):
        names = ("cyst", "haemangioma_2", "hcc", "fnh", "liver")
        values = [signal("t2w", name, scanner, blood) for name in names]
        assert all(a > 1.15 * b for a, b in itertools.pairwise(values))
        assert values[0] > 4 * values[-1]

    def test_diffusion_is_brightest_in_pus_then_in_tumour_and_a_cyst_is_not_restricted(self, scanner, blood):
        values = {name: signal("dwi", name, scanner, blood) for name in TABLE}
        for tumour in ("hcc", "icc", "metastasis"):
            assert values["pus"] > 1.5 * values[tumour]
            assert values[tumour] > 1.4 * values["liver"]
        # A cyst's brightness on T2 is nearly all gone.
        lost = (
            values["cyst"]
            / values["liver"]
            / (signal("t2w", "cyst", scanner, blood) / signal("t2w", "liver", scanner, blood))
        )
        assert lost < 0.3
        assert values["fnh"] == pytest.approx(values["liver"], rel=0.35)


@pytest.mark.parametrize("field_t", FIELDS_T)
def test_fat_in_the_liver_is_lost_out_of_phase_in_proportion(field_t):
    scanner, blood = Scanner(field_t=field_t), Circulation(Timing())
    kept = []
    for fat in (0.0, 0.1, 0.2, 0.3):
        table = jittered(np.random.default_rng(0), liver_fat=fat)
        pair = [signals(name, ("liver",), table, scanner, blood) for name in ("in_phase", "out_of_phase")]
        inn, out = (abs(pools.sum()) for pools in pair)
        kept.append(out / inn)
    assert 1.0 <= kept[0] < 1.15  # the shorter echo of the pair is the brighter one
    assert all(a > b + 0.1 for a, b in itertools.pairwise(kept))
    assert kept[2] / kept[0] < 0.75


def test_fat_fills_the_image_in_phase_and_cancels_where_it_meets_water(monkeypatch):
    monkeypatch.setattr(scan, "MISSING_SHARE", 0.0)
    index = next(index for index in range(40) if draw_fats(stream(5, index, "liver fat"))[0] > 0.15)
    study = generate(5, index, spacing_mm=SPACING_MM, only="normal", motion_mm=0.0)
    torso = build_torso(field_of_view(SPACING_MM), stream(5, index, "liver anatomy"))
    inn, out = (on_mask_grid(study, name) for name in ("in_phase", "out_of_phase"))
    liver, spleen = (ndimage.binary_erosion(torso.fractions[n] > 0.9) for n in ("liver", "spleen"))
    assert np.median(out[liver]) / np.median(inn[liver]) < 0.8 * np.median(out[spleen]) / np.median(inn[spleen])
    border = (torso.fractions["fat"] > 0.4) & (torso.fractions["fat"] < 0.6) & (torso.fractions["muscle"] > 0.35)
    assert np.median(out[border]) < 0.5 * np.median(inn[border])


def test_a_compartment_is_the_convolution_of_its_inflow_with_a_decay():
    inflow = np.random.default_rng(0).random(80)
    rate = 0.13
    kept = [(np.exp(-rate * age) - np.exp(-rate * (age + 1))) / rate for age in range(80)]
    slow = [sum(inflow[s] * kept[t - s - 1] for s in range(t)) for t in range(80)]
    np.testing.assert_allclose(followed(inflow, rate), slow, atol=1e-9)


def test_the_bolus_peaks_as_published_and_portal_blood_follows():
    blood = Circulation(Timing(arrival_s=15.0))
    assert blood.arterial.max() == pytest.approx(6.0, abs=0.3)
    assert blood.seconds[blood.arterial.argmax()] == pytest.approx(25, abs=1)
    assert blood.seconds[blood.portal.argmax()] > blood.seconds[blood.arterial.argmax()] + 10
    assert blood.portal.max() < 0.5 * blood.arterial.max()
    assert aorta_mm(np.array([-1.0]))[0] == 0.0
    assert blood.at("pre_contrast", Uptake(1.0, 1.0, 1.0)) == 0.0


# What the whole lesion does against the liver about it, in images: above (1), below (-1); other series are not asked.
SEEN = {
    "hcc": {"t2w": 1, "dwi": 1, "pre_contrast": -1, "portal_venous": -1},
    "icc": {"t2w": 1, "dwi": 1, "pre_contrast": -1},
    "metastasis": {"t2w": 1, "dwi": 1, "pre_contrast": -1, "portal_venous": -1, "delayed": -1},
    "cyst": {"t2w": 1, "in_phase": -1, "arterial": -1, "portal_venous": -1, "delayed": -1},
    "haemangioma": {"t2w": 1, "pre_contrast": -1, "delayed": 1},
    "fnh": {"t2w": 1, "arterial": 1},
    "abscess": {"t2w": 1, "dwi": 1, "pre_contrast": -1},
}


def test_the_mask_covers_what_the_image_shows(studies):
    seen = 0
    for study in studies:
        for finding in study.truth["findings"]:
            kind = finding["type"]
            lesion = study.mask.voxels == MASK_LABELS[MASKS[kind]]
            touched = ndimage.binary_dilation(study.mask.voxels > 0, iterations=2)
            near = ndimage.binary_dilation(lesion, iterations=4) & ~touched
            if not study.labels[kind] or finding["diameters_mm"][2] < 20:
                continue
            torso = build_torso(field_of_view(SPACING_MM), stream(3, int(study.subject[-4:]), "liver anatomy"))
            near &= torso.fractions["liver"] > 0.9
            for sequence, direction in SEEN[kind].items():
                image = on_mask_grid(study, sequence)
                ratio = np.median(image[lesion]) / np.median(image[near])
                assert (ratio > 1.03) if direction > 0 else (ratio < 0.97), (kind, sequence, ratio)
                seen += 1
    assert seen > 40


def test_a_cyst_lies_where_its_mask_says(studies):
    """The bright voxels of T2 near the mask have the mask's middle and volume."""
    seen = 0
    for study in studies:
        if study.truth["findings"] and study.truth["findings"][0]["type"] == "cyst":
            image = on_mask_grid(study, "t2w")
            parts, _ = ndimage.label(study.mask.voxels == MASK_LABELS["liver_cyst"])
            part = parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
            near = ndimage.binary_dilation(part, iterations=3)
            bright = near & (image > 0.5 * np.percentile(image[part], 90))
            drawn, shown = measure(part, study.mask.affine), measure(bright, study.mask.affine)
            assert np.linalg.norm(np.subtract(drawn.centroid_mm, shown.centroid_mm)) < 0.8 * SPACING_MM
            assert shown.volume_ml == pytest.approx(drawn.volume_ml, rel=0.5)
            seen += 1
    assert seen == 3


def test_truth_is_measured_from_the_mask(studies):
    for study in studies:
        for finding in study.truth["findings"]:
            volume = np.isin(study.mask.voxels, finding["mask_labels"]).sum() * SPACING_MM**3 / 1000
            assert finding["volume_ml"] == pytest.approx(volume, rel=1e-3)
            assert finding["side"] in {LOBES.get(segment, "right") for segment in finding["segments"]} | {"both"}
        assert set(study.labels) == set(FINDINGS)
        assert {f["type"] for f in study.truth["findings"]} == {k for k in MASKS if study.labels[k]}
        assert study.labels["normal"] == float(not study.mask.voxels.any())
        assert set(np.unique(study.mask.voxels)) - {0} <= set(region_numbers("liver_lesion"))


def test_kinds_have_their_numbers_and_metastases_are_several(studies):
    assert all(
        finding["count"] >= 2 for s in studies for finding in s.truth["findings"] if finding["type"] == "metastasis"
    )
    kinds = [draw_kinds(np.random.default_rng(index)) for index in range(3000)]
    assert np.mean([not kind for kind in kinds]) == pytest.approx(0.16, abs=0.03)
    for kind in MASKS:
        assert 0.09 < np.mean([kind in drawn for drawn in kinds]) < 0.25
    assert {len(drawn) for drawn in kinds} == {0, 1, 2}


def test_breath_moves_the_liver_and_not_the_spine_and_leaves_the_mask():
    still, moved = (generate(1, 2, spacing_mm=SPACING_MM, only="cyst", motion_mm=mm) for mm in (0.0, 8.0))
    assert np.array_equal(still.mask.voxels, moved.mask.voxels)
    assert still.report == moved.report
    sequence = next(n for n, a in moved.truth["acquisition"].items() if abs(a["breath_mm"]) > 5)
    torso = build_torso(field_of_view(SPACING_MM), stream(1, 2, "liver anatomy"))
    gap = np.abs(on_mask_grid(still, sequence) - on_mask_grid(moved, sequence))
    gap /= moved.truth["acquisition"][sequence]["gain"]
    assert gap[ndimage.maximum_filter(torso.mobile, 5) == 0].max() < 0.005
    most, least = (filtered(torso.liver, 3) for filtered in (ndimage.maximum_filter, ndimage.minimum_filter))
    edge = (torso.mobile > 0.8) & (most > 0.9) & (least < 0.1)
    assert gap[edge].mean() > 0.1


def test_in_phase_and_out_of_phase_share_a_breath_and_dynamic_phases_a_gain():
    for index in range(40):
        session = scan.draw_session(np.random.default_rng(index))
        for group in ("chemical_shift", "dynamic"):
            assert len({how.gain for name, how in session.series.items() if scan.GROUPS[name] == group}) <= 1
        assert len({b for name, b in session.breath.items() if name in {"in_phase", "out_of_phase"}}) <= 1
        assert session.breath.get("portal_venous", 0.0) == 0.0


def test_some_series_are_missing_and_never_all():
    counts = [len(scan.draw_session(np.random.default_rng(index)).series) for index in range(400)]
    assert min(counts) >= 1
    assert np.mean(counts) / len(SEQUENCES) == pytest.approx(0.8, abs=0.03)


def test_the_same_seed_gives_the_same_study_and_another_index_another():
    once, again, other = (generate(2, index, spacing_mm=SPACING_MM) for index in (4, 4, 5))
    assert once.report.text == again.report.text
    assert once.truth == again.truth
    for sequence, volume in once.volumes.items():
        assert np.array_equal(volume.voxels, again.volumes[sequence].voxels)
    assert once.truth != other.truth


def test_fractions_fill_the_body_and_no_more():
    for index in range(4):
        torso = build_torso(field_of_view(SPACING_MM), np.random.default_rng(index))
        total = sum(torso.fractions.values())
        assert min(float(part.min()) for part in torso.fractions.values()) >= 0
        assert total.max() <= 1 + 1e-4
        litres = torso.liver.sum() * SPACING_MM**3 / 1e6
        assert 0.9 < litres < 2.4  # a liver weighs about one and a half kilograms
        # Right of the middle, spleen on the left.
        x = torso.grid.affine[0, 3] + SPACING_MM * np.arange(torso.grid.shape[0])
        assert np.average(x, weights=torso.liver.sum(axis=(1, 2))) > 30
        assert np.average(x, weights=torso.fractions["spleen"].sum(axis=(1, 2))) < -60


def test_known_places_lie_in_their_segments():
    places = {
        (110, -40, 40): "VII", (110, -40, -30): "VI", (85, 35, 40): "VIII", (85, 35, -20): "V", (25, 45, 20): "IV",
        (-30, 35, 50): "II", (-30, 35, 15): "III", (10, 0, 22): "I",
    }  # fmt: skip
    assert list(segment_of(np.array(list(places), dtype=float))) == list(places.values())


def test_outside_the_body_is_zero_or_noise():
    clear, noisy = (generate(1, 0, spacing_mm=SPACING_MM, skull_stripped=clean) for clean in (True, False))
    for sequence in clear.volumes:
        assert not clear.volumes[sequence].voxels[0].any()
        assert (noisy.volumes[sequence].voxels[0] > 0).mean() > 0.5


@pytest.mark.parametrize(
    ("arguments", "message"), [({"spacing_mm": 9.0}, "1 to 8 mm"), ({"only": "mass"}, "no kind of simulated liver")]
)
def test_bad_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        generate(0, 0, **({"spacing_mm": SPACING_MM} | arguments))
