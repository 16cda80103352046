"""The simulated cohort on disk, its reports, and the audit that nothing but the image tells the disease."""

from __future__ import annotations

import csv
import json
import re

import nibabel as nib
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tomoglot.studies.phantom import FINDINGS, draw_montage, generate, wording, write_cohort
from tomoglot.studies.phantom.acquire import draw_acquisitions
from tomoglot.studies.phantom.disease import draw_kinds
from tomoglot.studies.phantom.sentences import size_cm
from tomoglot.studies.phantom.signal import SEQUENCES
from tomoglot.studies.phantom.simulated import split_of, stream
from tomoglot.studies.phantom.wording import Finding, write_report

SPACING_MM = 6.0


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Eight studies on disk at 6 mm."""
    out = tmp_path_factory.mktemp("cohort")
    calls = []
    write_cohort(
        out, subjects=8, seed=5, spacing_mm=SPACING_MM, progress=lambda done, total: calls.append((done, total))
    )
    assert calls == [(n, 8) for n in range(1, 9)]
    return out


@pytest.fixture(scope="module")
def studies():
    return [generate(9, index, spacing_mm=SPACING_MM) for index in range(60)]


def rows_of(folder):
    with (folder / "studies.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_has_a_row_a_series_and_every_file_is_there(cohort):
    rows = rows_of(cohort)
    assert len({row["subject"] for row in rows}) == 8
    for row in rows:
        assert row["sequence"] in SEQUENCES
        assert row["simulated"] == "true"
        assert {row[f"label:{name}"] for name in FINDINGS} <= {"0", "1"}
        for column in ("path", "report", "mask"):
            assert (cohort / row[column]).is_file()
        truth = json.loads((cohort / "truth" / f"{row['subject']}_{row['study']}.json").read_text())
        assert truth["simulated"] is True
        assert (
            truth["split"]
            == row["split"]
            == split_of(5, int(row["subject"][-4:]), {"train": 0.6, "val": 0.1, "test": 0.3})
        )


def test_headers_say_simulated_and_mni_and_voxels_are_int16(cohort):
    for row in rows_of(cohort):
        header = nib.load(cohort / row["path"]).header
        assert b"simulated" in header["descrip"].item()
        assert header["sform_code"] == 4
        assert header.get_data_dtype() == np.int16
        assert nib.aff2axcodes(header.get_best_affine()) == ("R", "A", "S")


def test_a_cohort_written_twice_is_the_same_bytes_whatever_the_workers(cohort, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    write_cohort(one, subjects=3, seed=5, spacing_mm=SPACING_MM)
    write_cohort(two, subjects=3, seed=5, spacing_mm=SPACING_MM, workers=2)
    first, second = (
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()} for root in (one, two)
    )
    assert first == second
    # A larger cohort of the same seed begins with the same studies; its tables are of all of them.
    assert all((cohort / path).read_bytes() == data for path, data in first.items() if path.parts[1:])


def test_controls_are_all_normal_and_fractions_are_kept(tmp_path):
    write_cohort(tmp_path, subjects=4, seed=1, spacing_mm=SPACING_MM, only="normal", split_fractions={"test": 1.0})
    for row in rows_of(tmp_path):
        assert row["label:normal"] == "1"
        assert row["split"] == "test"


def test_split_shares_are_near_the_fractions():
    sides = [split_of(0, index, {"train": 0.6, "val": 0.1, "test": 0.3}) for index in range(3000)]
    for name, share in (("train", 0.6), ("val", 0.1), ("test", 0.3)):
        assert sides.count(name) / 3000 == pytest.approx(share, abs=0.03)


def test_reports_state_the_side_that_the_masks_centroid_has(studies):
    seen = 0
    for study in studies:
        findings = {f["id"]: f for f in study.truth["findings"]}
        for sentence in study.truth["sentences"]:
            for number in sentence["findings"]:
                finding = findings[number]
                if sentence["section"] != "findings" or not finding["lobe"]:
                    continue
                mask = np.isin(study.mask.voxels, finding["mask_labels"])
                if sum(set(f["mask_labels"]) & set(finding["mask_labels"]) != set() for f in findings.values()) == 1:
                    x = (study.mask.affine @ np.append(np.argwhere(mask).mean(axis=0), 1))[0]
                    assert finding["side"] == ("right" if x > 0 else "left")
                text = sentence["text"].lower()
                other = {"right": "left", "left": "right"}[finding["side"]]
                assert finding["side"] in text
                assert other not in text
                seen += 1
    assert seen > 20


def test_reported_sizes_give_the_masks_volume(studies):
    seen = 0
    for study in studies:
        findings = {f["id"]: f for f in study.truth["findings"]}
        for sentence in study.truth["sentences"]:
            size = re.search(r"([\d.]+) x ([\d.]+) x ([\d.]+) cm", sentence["text"])
            if size:
                volume_ml = np.pi / 6 * np.prod([float(d) for d in size.groups()])
                assert volume_ml == pytest.approx(findings[sentence["findings"][0]]["volume_ml"], rel=0.1)
                seen += 1
    assert seen > 15


@pytest.mark.parametrize("smallest_mm", [9.0, 11.3, 14.9])
def test_rounding_a_size_keeps_its_volume(smallest_mm):
    three = (smallest_mm * 1.37, smallest_mm * 1.11, smallest_mm)
    told = [float(d) for d in size_cm(three).split(" x ")]
    assert np.prod(told) == pytest.approx(np.prod(three) / 1000, rel=0.06)


def test_words_that_need_a_sequence_are_used_only_where_it_was_acquired(studies):
    used = set()
    for study in studies:
        body = (study.report.findings + study.report.impression).lower()
        for words, sequence in (("enhancing", "t1c"), ("restricted diffusion", "dwi"), ("acute", "dwi"),
                                ("susceptibility", "t2s"), ("flair", "flair")):  # fmt: skip
            if words in body:
                assert sequence in study.volumes
                used.add(words)
    assert {"enhancing", "restricted diffusion", "acute"} <= used


def test_technique_names_the_acquired_sequences_in_its_own_section(studies):
    for study in studies:
        technique = study.report.text.split("\n\n")[0]
        assert technique.startswith("TECHNIQUE: Simulated")
        for name, words in wording.SEQUENCE_WORDS.items():
            listed = technique.removeprefix("TECHNIQUE: Simulated brain MRI: ").rstrip(".").split(", ")
            assert (words in listed) == (name in study.volumes)
        assert "TECHNIQUE" not in study.report.findings + study.report.impression


def test_every_finding_is_told_and_only_absent_findings_are_denied(studies):
    denied_sometimes = set()
    for study in studies:
        told = {n for s in study.truth["sentences"] if s["section"] == "findings" for n in s["findings"]}
        assert told == {f["id"] for f in study.truth["findings"]}
        denied = {kind for s in study.truth["sentences"] for kind in s["denies"]}
        assert denied <= set(study.truth["absent"])
        denied_sometimes |= denied
        assert all(s["text"] in study.report.text for s in study.truth["sentences"])
    assert denied_sometimes == set(FINDINGS) - {"normal"}


def test_held_out_wordings_are_for_test_subjects_only(studies):
    held = {study.split: [] for study in studies}
    for study in studies:
        held[study.split] += [s["held_out_wording"] for s in study.truth["sentences"]]
    assert not any(held["train"] + held["val"])
    assert 0.3 < np.mean(held["test"]) < 0.85


def test_every_wording_can_be_filled_and_leaves_no_brace():
    mass = {"side": "left", "lobe": "frontal", "diameters_mm": (30.0, 20.0, 10.0), "volume_ml": 3.1}
    for kind in wording.FINDINGS:
        finding = Finding(id=0, type=kind, count=7, shift_mm=4.0, grade="mild", **mass)
        for acquired in (SEQUENCES, ("t1w",), ("t2w",)):
            for seed in range(12):
                rng = np.random.default_rng(seed)
                report, _ = write_report([finding], ["oedema"], acquired, rng=rng, test=bool(seed % 2))
                assert not re.search(r"[{}]|  |\. \.|an  | ,", report.text), report.text


def test_nothing_about_the_acquisition_tells_the_disease():
    """A linear model on gain, noise, slice thickness and missing sequences must not predict any finding."""
    features, kinds = [], []
    for index in range(1500):
        plan = draw_acquisitions(stream(3, index, "acquisition"))
        row = [[name in plan, *((np.log(a.gain), a.snr, a.slice_mm or 0) if (a := plan.get(name)) else (0, 0, 0))]
               for name in SEQUENCES]  # fmt: skip
        features.append(np.ravel(row).astype(float))
        kinds.append(draw_kinds(stream(3, index, "disease")))
    x = np.array(features)
    for kind in ("mass", "demyelination", "infarct", "haemorrhage", "volume_loss", "normal"):
        y = np.array([kind in k if kind != "normal" else not k for k in kinds])
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500)).fit(x[:750], y[:750])
        assert abs(roc_auc_score(y[750:], model.predict_proba(x[750:])[:, 1]) - 0.5) < 0.09


def test_the_stored_gain_is_the_drawn_one_and_not_the_images_maximum(studies):
    """Scaling by an image's own maximum would let a bright lesion set the gain."""
    white = []
    for study in studies:
        if "t1c" in study.volumes:
            image = study.volumes["t1c"].voxels
            white.append(
                (bool(study.labels["mass"]), np.median(image[image > 0]) / study.truth["acquisition"]["t1c"]["gain"])
            )
    with_mass = np.mean([v for mass, v in white if mass])
    without = np.mean([v for mass, v in white if not mass])
    assert with_mass == pytest.approx(without, rel=0.1)


def test_the_montage_is_drawn_and_says_simulated(cohort, tmp_path):
    png = draw_montage(cohort, tmp_path / "montage.png", rows=2)
    assert png.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert b"simulated" in png.read_bytes()
    with pytest.raises(ValueError, match=r"studies\.csv"):
        draw_montage(tmp_path, tmp_path / "none.png")


def test_a_cohort_of_nobody_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 1 subject"):
        write_cohort(tmp_path, subjects=0, seed=0, spacing_mm=SPACING_MM)


def test_fewer_sequences_may_be_acquired_and_nothing_else_moves():
    for index in range(6):
        whole = generate(4, index, spacing_mm=8.0)
        part = generate(4, index, spacing_mm=8.0, sequences=("t1w", "flair"))
        kept = [name for name in whole.volumes if name in ("t1w", "flair")]
        assert list(part.volumes) == (kept or ["t1w"])
        assert part.truth["acquisition"].items() <= (whole.truth["acquisition"] | part.truth["acquisition"]).items()
        np.testing.assert_array_equal(part.mask.voxels, whole.mask.voxels)
        assert part.labels == whole.labels
        assert not re.search(r"diffusion|DWI|susceptib", part.report.text, re.IGNORECASE)
    with pytest.raises(ValueError, match=r"no sequence adc; there are t1w"):
        generate(4, 0, spacing_mm=8.0, sequences=("adc",))


def test_a_liver_cohort_of_two_phases_has_no_other(tmp_path):
    table = write_cohort(tmp_path, subjects=3, seed=2, spacing_mm=8.0, cohort="liver", sequences=["arterial", "t2w"])
    with table.open() as rows:
        assert {row["sequence"] for row in csv.DictReader(rows)} <= {"arterial", "t2w"}
