"""The simulated liver cohort on disk, its reports, and the audit that nothing but the image tells the disease."""

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

from tomoglot.studies.phantom import draw_montage, write_cohort
from tomoglot.studies.phantom.liver.cohort import FINDINGS, generate
from tomoglot.studies.phantom.liver.lesions import MASK_LABELS, MASKS, draw_kinds
from tomoglot.studies.phantom.liver.scan import draw_session
from tomoglot.studies.phantom.liver.signal import SEQUENCES
from tomoglot.studies.phantom.liver.wording import LOOKS, NAMES, PLURALS, SENTENCES, Finding, can_be_named, write_report
from tomoglot.studies.phantom.simulated import split_of, stream
from tomoglot.studies.source import read_source

SPACING_MM = 8.0


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Six studies on disk at 8 mm."""
    out = tmp_path_factory.mktemp("cohort")
    write_cohort(out, subjects=6, seed=5, spacing_mm=SPACING_MM, cohort="liver")
    return out


@pytest.fixture(scope="module")
def studies():
    return [generate(9, index, spacing_mm=SPACING_MM) for index in range(60)]


def rows_of(folder):
    with (folder / "studies.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_has_a_row_a_series_and_every_file_is_there(cohort):
    rows = rows_of(cohort)
    assert len({row["subject"] for row in rows}) == 6
    for row in rows:
        assert row["sequence"] in SEQUENCES
        assert row["simulated"] == "true"
        assert {key for key in row if key.startswith("label:")} == {f"label:{name}" for name in FINDINGS}
        assert all((cohort / row[column]).is_file() for column in ("path", "report", "mask"))
        truth = json.loads((cohort / "truth" / f"{row['subject']}_{row['study']}.json").read_text())
        assert truth["simulated"] is True
        # The same split as the brain cohort's subject of that number, but never the same person.
        split = split_of(5, int(row["subject"][-4:]), {"train": 0.6, "val": 0.1, "test": 0.3})
        assert truth["split"] == row["split"] == split
        assert row["subject"].startswith("sub-L")
        header = nib.load(cohort / row["path"]).header
        assert b"simulated liver" in header["descrip"].item()
        assert header["sform_code"] == 1
        assert header.get_data_dtype() == np.int16


def test_the_cohort_is_read_back_as_a_source_with_its_labels_and_sequences(cohort):
    sources = read_source(cohort)
    assert not sources.rejected
    for study in sources.studies:
        assert study.simulated
        assert set(study.labels) == set(FINDINGS)
        assert {series.sequence for series in study.series} <= set(SEQUENCES)
        assert study.report is not None and "Simulated liver MRI" in study.report.text


def test_a_cohort_written_twice_is_the_same_bytes_whatever_the_workers(cohort, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for out, workers in ((one, 1), (two, 2)):
        write_cohort(out, subjects=2, seed=5, spacing_mm=SPACING_MM, cohort="liver", workers=workers)
    first, second = (
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()} for root in (one, two)
    )
    assert first == second
    assert all((cohort / path).read_bytes() == data for path, data in first.items() if path.parts[1:])


def test_an_unknown_cohort_is_refused_and_the_known_ones_are_named(tmp_path):
    with pytest.raises(ValueError, match="no simulated cohort 'knee'; there are brain, liver"):
        write_cohort(tmp_path, subjects=1, seed=0, spacing_mm=SPACING_MM, cohort="knee")


def test_the_montage_knows_the_cohort_and_says_simulated(cohort, tmp_path):
    png = draw_montage(cohort, tmp_path / "montage.png", rows=2)
    assert b"simulated" in png.read_bytes()
    text = (cohort / "studies.csv").read_text().replace("label:fnh", "label:gout")
    (tmp_path / "studies.csv").write_text(text)
    with pytest.raises(ValueError, match="no simulated cohort"):
        draw_montage(tmp_path, tmp_path / "none.png")


def test_reports_state_the_lobe_in_which_the_mask_lies_and_never_the_other(studies):
    seen = 0
    for study in studies:
        findings = {f["id"]: f for f in study.truth["findings"]}
        for sentence in study.truth["sentences"]:
            for number in sentence["findings"]:
                finding, text = findings[number], sentence["text"].lower()
                if finding["side"] in {"right", "left"}:
                    other = {"right": "left", "left": "right"}[finding["side"]]
                    assert not re.search(rf"\b{other}\b", text)
                    seen += bool(re.search(rf"\b{finding['side']} lobe", text))
        for finding in findings.values():
            if (
                finding["count"] == 1
                and finding["side"] in {"right", "left"}
                and abs(finding["centroid_mm"][0] - 30) > 45
            ):
                assert finding["side"] == ("right" if finding["centroid_mm"][0] > 30 else "left")
    assert seen > 40


def test_reported_sizes_give_the_volume_of_a_single_lesion(studies):
    seen = 0
    for study in studies:
        findings = {f["id"]: f for f in study.truth["findings"]}
        for sentence in study.truth["sentences"]:
            size = re.search(r"([\d.]+) x ([\d.]+) x ([\d.]+) cm", sentence["text"])
            finding = findings[sentence["findings"][0]] if size else None
            if finding and finding["count"] == 1:
                volume_ml = np.pi / 6 * np.prod([float(d) for d in size.groups()])
                assert volume_ml == pytest.approx(finding["volume_ml"], rel=0.1)
                seen += 1
    assert seen > 25


def test_what_a_series_shows_is_told_only_where_it_was_acquired(studies):
    used = set()
    for study in studies:
        acquired = set(study.volumes) | ({"t1"} if {"in_phase", "pre_contrast"} & set(study.volumes) else set())
        for finding in study.truth["findings"]:
            told = " ".join(
                s["text"] for s in study.truth["sentences"]
                if s["findings"] == [finding["id"]] and s["section"] == "findings"
            ).lower()  # fmt: skip
            for sequence, phrases in LOOKS[finding["type"]].items():
                if finding["type"] == "hcc" and sequence == "arterial":
                    phrases = [*phrases, *SENTENCES["rim_hcc"]]
                assert any(phrase.lower() in told for phrase in phrases) == (sequence in acquired)
                used.add((finding["type"], sequence))
    assert len(used) > 40


def test_technique_names_the_acquired_series_and_sometimes_the_missing_ones(studies):
    silent = told = 0
    for study in studies:
        technique = study.report.text.split("\n\n")[0]
        assert technique.startswith("TECHNIQUE: Simulated liver MRI: ")
        named = [s for s in study.truth["sentences"] if s["section"] == "technique"]
        if len(study.volumes) < len(SEQUENCES):
            told, silent = told + bool(named), silent + (not named)
        else:
            assert not named
    assert told > 10
    assert silent > 10


def test_a_lesion_is_named_only_where_its_signs_were_acquired_and_nothing_is_denied_otherwise(studies):
    vague = 0
    for study in studies:
        sentences = study.truth["sentences"]
        for finding in study.truth["findings"]:
            assert finding["named"] == can_be_named(finding["type"], tuple(study.volumes))
            said = [s for s in sentences if finding["id"] in s["findings"]]
            summed = next(s["text"] for s in said if s["section"] == "impression")
            names = NAMES[finding["type"]]
            told = [*names, *(PLURALS[name] for name in names if name in PLURALS)]
            assert any(name in summed for name in told) == finding["named"]
            if not finding["named"]:
                assert not any(name in study.report.text for name in NAMES[finding["type"]])
                assert not any(s["denies"] for s in sentences)
                vague += 1
        denied = {kind for s in sentences for kind in s["denies"]}
        assert denied <= set(study.truth["absent"])
        assert all(s["text"] in study.report.text for s in sentences)
    assert vague > 3


def test_held_out_wordings_are_for_test_subjects_only(studies):
    held = {study.split: [] for study in studies}
    for study in studies:
        held[study.split] += [s["held_out_wording"] for s in study.truth["sentences"]]
    assert not any(held["train"] + held["val"])
    assert 0.3 < np.mean(held["test"]) < 0.9


def test_every_wording_can_be_filled_and_leaves_no_brace():
    place = {"segments": ("VI",), "diameters_mm": (30.0, 20.0, 10.0), "volume_ml": 3.1, "centroid_mm": (0.0, 0.0, 0.0)}
    for kind in MASKS:
        for side, count, named in (("right", 1, True), ("both", 4, True), ("caudate", 1, False), ("caudate", 2, False)):
            finding = Finding(
                id=0, type=kind, side=side, segment="VI", count=count, mask_labels=(9,), named=named, rim=named,
                fat=0.2, **place,
            )  # fmt: skip
            for acquired in (SEQUENCES, ("dwi",), ("in_phase", "out_of_phase")):
                for seed in range(8):
                    rng = np.random.default_rng(seed)
                    report, _ = write_report(
                        [finding], ["cyst"], acquired, liver_fat=0.2, rng=rng, test=bool(seed % 2)
                    )  # fmt: skip
                    assert not re.search(r"[{}]|  |\. \.| ,|metastasiss|FNHs", report.text), report.text


def test_fatty_livers_are_told_where_both_echoes_were_acquired(studies):
    told = 0
    for study in studies:
        both = {"in_phase", "out_of_phase"} <= set(study.volumes)
        said = any(s["text"] in SENTENCES["steatosis"] for s in study.truth["sentences"])
        assert said == (both and study.truth["liver_fat"] >= 0.08)
        told += said
    assert told > 5


def test_nothing_about_the_acquisition_tells_the_disease():
    """A linear model on field, times, gain, noise, slices, breath and missing series must not predict any kind."""
    features, kinds = [], []
    for index in range(1500):
        session = draw_session(stream(3, index, "liver acquisition"))
        row = [session.scanner.field_t, session.timing.arterial, session.timing.delayed]
        for name in SEQUENCES:
            how = session.series.get(name)
            row += [float(how is not None), np.log(how.gain) if how else 0.0, how.snr if how else 0.0]
            row += [session.breath.get(name, 0.0), how.slice_mm if how else 0.0]
        features.append(row)
        kinds.append(draw_kinds(stream(3, index, "liver disease")))
    x = np.array(features)
    for kind in FINDINGS:
        y = np.array([kind in k if kind != "normal" else not k for k in kinds])
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.05, max_iter=500)).fit(x[:750], y[:750])
        assert abs(roc_auc_score(y[750:], model.predict_proba(x[750:])[:, 1]) - 0.5) < 0.1


def test_masks_use_numbers_of_their_own(studies):
    assert min(MASK_LABELS.values()) > 8  # those of the brain stay as they are
    assert len(set(MASK_LABELS.values())) == len(MASKS)
