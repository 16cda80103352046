"""The simulated chest cohort on disk, its reports, and the audit that nothing but the image tells the disease."""

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

from tomoglot.studies.curate import examine
from tomoglot.studies.phantom import draw_montage, write_cohort
from tomoglot.studies.phantom.chest.cohort import CHEST, generate
from tomoglot.studies.phantom.chest.disease import draw_findings
from tomoglot.studies.phantom.chest.scan import SLICES_MM, draw_session
from tomoglot.studies.phantom.chest.scene import FINDINGS, MASK_LABELS
from tomoglot.studies.phantom.chest.thorax import LOBES
from tomoglot.studies.phantom.chest.wording import (
    CLEAR,
    CONCLUDE,
    NAMES,
    SENTENCES,
    TELL,
    Finding,
    amount_of,
    place_of,
    write_report,
)
from tomoglot.studies.phantom.files import COHORTS
from tomoglot.studies.phantom.simulated import split_of, stream
from tomoglot.studies.source import read_source

SPACING_MM = 8.0


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Seven subjects on disk at 8 mm."""
    out = tmp_path_factory.mktemp("cohort")
    write_cohort(out, subjects=7, seed=5, spacing_mm=SPACING_MM, cohort="chest")
    return out


@pytest.fixture(scope="module")
def studies():
    return [generate(9, index, spacing_mm=SPACING_MM) for index in range(44)]


def rows_of(folder):
    with (folder / "studies.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def finding_of(kind, **changes):
    said = {
        "id": 0, "type": kind, "side": "right", "lobes": ("right upper",), "details": (), "count": 1,
        "diameters_mm": (31.0, 20.0, 12.0), "volume_ml": 120.0, "centroid_mm": (0.0, 0.0, 0.0), "mask_labels": (16,),
    }  # fmt: skip
    return Finding(**said | changes)


def test_the_table_has_a_row_a_reconstruction_and_every_file_is_there(cohort):
    rows = rows_of(cohort)
    assert len({row["subject"] for row in rows}) == 7
    for row in rows:
        assert row["sequence"] == "ct"
        assert row["simulated"] == "true"
        assert {key for key in row if key.startswith("label:")} == {f"label:{name}" for name in CHEST.findings}
        assert all((cohort / row[column]).is_file() for column in ("path", "report", "mask"))
        truth = json.loads((cohort / "truth" / f"{row['subject']}_{row['study']}.json").read_text())
        assert truth["simulated"] is True
        # The same split as the brain cohort's subject of that number, but never the same person.
        split = split_of(5, int(row["subject"][-4:]), {"train": 0.6, "val": 0.1, "test": 0.3})
        assert truth["split"] == row["split"] == split
        assert row["subject"].startswith("sub-C")
        header = nib.load(cohort / row["path"]).header
        assert b"simulated chest" in header["descrip"].item()
        assert header.get_data_dtype() == np.int16


def test_the_cohort_is_read_back_and_every_study_is_accepted(cohort):
    sources = read_source(cohort)
    assert not sources.rejected
    for study in sources.studies:
        assert study.simulated
        assert set(study.labels) == set(CHEST.findings)
        assert [series.sequence for series in study.series] == ["ct"]
        assert study.report is not None and "imulated" in study.report.text
        found = examine(study)
        assert not found.rejected
        assert found.volumes["ct"].voxels.min() >= -1024
        assert found.mask is not None and set(np.unique(found.mask.voxels)) <= {0, *MASK_LABELS.values()}


def test_a_cohort_written_twice_is_the_same_bytes_whatever_the_workers(cohort, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for out, workers in ((one, 1), (two, 2)):
        write_cohort(out, subjects=2, seed=5, spacing_mm=SPACING_MM, cohort="chest", workers=workers)
    first, second = (
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()} for root in (one, two)
    )
    assert first == second
    assert all((cohort / path).read_bytes() == data for path, data in first.items() if path.parts[1:])


def test_the_findings_are_ct_rates_eighteen():
    from tomoglot.studies.layouts.ct_rate import FINDINGS as THEIRS

    assert set(FINDINGS) == {name.lower().replace(" ", "_") for name in THEIRS}
    assert set(COHORTS) >= {"brain", "liver", "chest"}


def test_the_montage_shows_both_windows_and_says_simulated(cohort, tmp_path):
    png = draw_montage(cohort, tmp_path / "montage.png", rows=2)
    assert b"simulated" in png.read_bytes()


def test_two_reconstructions_share_report_labels_and_mask_and_differ_in_kernel_and_noise():
    twice = 0
    for index in range(3):
        study = generate(4, index, spacing_mm=SPACING_MM, reconstruction_share=1.0)
        once = generate(4, index, spacing_mm=SPACING_MM, reconstruction_share=0.0)
        other = study.also
        assert other is not None and other.also is None and once.also is None
        assert np.array_equal(once.volumes["ct"].voxels, study.volumes["ct"].voxels)
        assert (other.subject, other.split) == (study.subject, study.split)
        assert (study.study, other.study) == ("ses-01", "ses-01r2")
        assert other.report == study.report == once.report
        assert other.labels == study.labels
        assert np.array_equal(other.mask.voxels, study.mask.voxels)
        kernels = {each.truth["acquisition"]["ct"]["kernel"] for each in (study, other)}
        assert kernels == {"sharp", "soft"}
        if study.volumes["ct"].voxels.shape == other.volumes["ct"].voxels.shape:
            assert not np.array_equal(study.volumes["ct"].voxels, other.volumes["ct"].voxels)
            twice += 1
    assert twice
    share = np.mean([len(draw_session(np.random.default_rng(seed), 0.15).series) == 2 for seed in range(2000)])
    assert share == pytest.approx(0.15, abs=0.03)


def test_a_second_reconstruction_is_a_study_on_disk(tmp_path):
    index = next(i for i in range(60) if generate(5, i, spacing_mm=SPACING_MM).also is not None)
    write_cohort(tmp_path, subjects=index + 1, seed=5, spacing_mm=SPACING_MM, cohort="chest")
    rows = [row for row in rows_of(tmp_path) if row["subject"] == f"sub-C{index:04d}"]
    assert [row["study"] for row in rows] == ["ses-01", "ses-01r2"]
    assert len({(tmp_path / row["report"]).read_text() for row in rows}) == 1
    assert len({(tmp_path / row["path"]).read_bytes() for row in rows}) == 2


def test_reports_tell_what_is_present_and_deny_only_what_is_absent(studies):
    denied_share = []
    for study in studies:
        sentences = study.truth["sentences"]
        assert all(sentence["text"] in study.report.text for sentence in sentences)
        told = {number for s in sentences if s["section"] == "findings" for number in s["findings"]}
        assert told == {finding["id"] for finding in study.truth["findings"]}
        assert any(s["section"] == "impression" for s in sentences)
        denied = {kind for s in sentences for kind in s["denies"]}
        assert denied <= set(study.truth["absent"])
        denied_share.append(len(denied) / len(FINDINGS))
        assert study.labels["normal"] == float(not study.truth["findings"])
    assert 0.3 < np.mean(denied_share) < 0.95


def test_reports_state_the_side_of_the_mask_and_never_the_other(studies):
    seen = 0
    for study in studies:
        findings = {finding["id"]: finding for finding in study.truth["findings"]}
        for sentence in study.truth["sentences"]:
            for number in sentence["findings"]:
                finding, text = findings[number], sentence["text"].lower()
                if finding["side"] == "both" or not finding["lobes"] or finding["type"] in (
                    "medical_material", "coronary_artery_wall_calcification", "lymphadenopathy",
                ):  # fmt: skip
                    continue
                other = {"right": "left", "left": "right"}[finding["side"]]
                assert not re.search(rf"\b({other}|bilateral|both)\b", text), text
                seen += bool(re.search(rf"\b{finding['side']}\b", text))
    assert seen > 30


def test_reported_lobes_hold_the_mask(studies):
    seen = 0
    for study in studies:
        for finding in study.truth["findings"]:
            for sentence in study.truth["sentences"]:
                if sentence["findings"] == [finding["id"]]:
                    named = re.findall(r"the (right|left) (upper|middle|lower) lobe\b", sentence["text"].lower())
                    assert {" ".join(name) for name in named} <= set(finding["lobes"])
                    seen += len(named)
    assert seen > 20


def test_reported_sizes_are_those_of_the_largest_part(studies):
    seen = 0
    for study in studies:
        findings = {finding["id"]: finding for finding in study.truth["findings"]}
        for sentence in study.truth["sentences"]:
            size = re.search(r"([\d.]+) (mm|cm)", sentence["text"]) if sentence["findings"] else None
            if size:
                finding = findings[sentence["findings"][0]]
                place = -1 if finding["type"] == "lymphadenopathy" else 0
                told = float(size[1]) * (10 if size[2] == "cm" else 1)
                assert told == pytest.approx(finding["diameters_mm"][place], abs=0.56)
                seen += 1
    assert seen > 20


def test_doubt_is_in_the_truth_and_the_label_stays(studies):
    doubtful = certain = 0
    for study in studies:
        for finding in study.truth["findings"]:
            told = [s["text"] for s in study.truth["sentences"] if s["findings"] == [finding["id"]]]
            hedged = [bool(re.search(HEDGE, text)) for text in told]
            assert all(hedged) if finding["uncertain"] else not any(hedged), told
            assert study.labels[finding["type"]] == 1.0
            doubtful, certain = doubtful + finding["uncertain"], certain + (not finding["uncertain"])
    assert 0.05 < doubtful / (doubtful + certain) < 0.25


HEDGE = r"(?i)possible|cannot be excluded|may be|questionable|suspicious for|suspected|cannot be ruled out|equivocal"


def test_held_out_wordings_are_for_test_subjects_only(studies):
    held = {study.split: [] for study in studies}
    for study in studies:
        held[study.split] += [s["held_out_wording"] for s in study.truth["sentences"]]
    assert not any(held["train"] + held["val"])
    assert 0.3 < np.mean(held["test"]) < 0.9


def test_every_list_of_wordings_holds_one_out_and_every_finding_has_all_of_them():
    lists = [*NAMES.values(), *CONCLUDE.values(), *SENTENCES.values(), *(clear["says"] for clear in CLEAR)]
    lists += [wordings for forms in TELL.values() for wordings in forms.values()]
    assert all(len(wordings) >= 3 and len(set(wordings)) == len(wordings) for wordings in lists)
    assert set(NAMES) == set(CONCLUDE) == set(TELL) == set(FINDINGS)
    assert {kind for clear in CLEAR for kind in clear["denies"]} <= set(FINDINGS)


@pytest.mark.parametrize("kind", FINDINGS)
def test_every_wording_can_be_filled_and_leaves_no_brace(kind):
    details = [name for name in TELL[kind] if name not in ("one", "many")] or [""]
    for detail in details:
        for side, lobes, count in (("right", LOBES[:1], 1), ("both", LOBES, 4), ("left", LOBES[3:], 2)):
            for doubt in (False, True):
                said = (detail,) if detail else ("subcarinal",)
                finding = finding_of(kind, side=side, lobes=lobes, count=count, details=said, uncertain=doubt)
                for seed in range(8):
                    rng = np.random.default_rng(seed)
                    report, _ = write_report([finding], ["bronchiectasis"], rng=rng, test=bool(seed % 2))
                    assert not re.search(r"[{}]|  |\. \.| ,|\bthe the\b|\ba an\b", report.text), report.text
                    assert all(line[0].isupper() for line in re.split(r"(?<=\.) (?=\D)", report.findings))


def test_places_and_amounts_in_words():
    assert place_of(finding_of("emphysema", lobes=LOBES)) == "both lungs"
    assert place_of(finding_of("emphysema", lobes=LOBES[:3])) == "the right lung"
    assert place_of(finding_of("emphysema", lobes=LOBES[3:])) == "the left lung"
    assert place_of(finding_of("emphysema", lobes=LOBES[:1])) == "the right upper lobe"
    assert place_of(finding_of("emphysema", lobes=LOBES[1:3])) == "the right middle and right lower lobes"
    amounts = [amount_of(finding_of("pleural_effusion", volume_ml=ml)) for ml in (20, 300, 900)]
    assert amounts == ["small", "moderate", "large"]


def test_reports_vary():
    texts = [generate(1, index, spacing_mm=SPACING_MM, only="normal").report.findings for index in range(6)]
    assert len(set(texts)) == 6


def test_nothing_about_the_acquisition_tells_the_disease():
    """A linear model on dose, breath, field, kernel, slices and noise must not predict any finding."""
    features, kinds = [], []
    for index in range(2000):
        session = draw_session(stream(3, index, "chest acquisition"), 0.15)
        how = session.series[0]
        assert SLICES_MM[0] <= how.slice_mm <= SLICES_MM[1]
        features.append([
            np.log(session.dose), session.breath, session.half_mm, len(session.series), how.kernel == "sharp",
            how.slice_mm, how.noise_hu, how.blur_mm,
        ])  # fmt: skip
        kinds.append(draw_findings(stream(3, index, "chest disease")))
    x = np.array(features, dtype=float)
    for kind in CHEST.findings:
        y = np.array([kind in k if kind != "normal" else not k for k in kinds])
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.05, max_iter=500)).fit(x[:1000], y[:1000])
        assert abs(roc_auc_score(y[1000:], model.predict_proba(x[1000:])[:, 1]) - 0.5) < 0.1, kind


def test_the_same_scan_is_drawn_whatever_the_disease():
    """The stream of the acquisition does not move with what a subject has."""
    ill, well = (generate(7, 3, spacing_mm=SPACING_MM, only=kind) for kind in ("emphysema", "normal"))
    assert ill.truth["acquisition"] == well.truth["acquisition"]
    assert (ill.truth["dose"], ill.truth["breath"]) == (well.truth["dose"], well.truth["breath"])
    outside = (ill.volumes["ct"].voxels == -1000) & (well.volumes["ct"].voxels == -1000)
    assert outside.mean() > 0.1
