"""The page stands alone, escapes what it is given, and shows intervals, controls and rejections."""

import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest

from tomoglot.serve import report
from tomoglot.store.plan import Plan
from tomoglot.studies.nifti import write_nifti
from tomoglot.studies.study import Volume
from tomoglot.tasks.task import SCRATCH, Comparison, Score, SubsetScore, TaskResult

NASTY = "<script>alert(1)</script>"


def result():
    scores = tuple(
        Score(name=name, value=value, low=value - 0.08, high=value + 0.05, subjects=60, prevalence=0.3, arm=arm)
        for name in ("macro", "mass", "infarct", "volume_loss")
        for arm, value in (("model", 0.87), (SCRATCH, 0.55), ("image removed", 0.5))
    )
    gap = Comparison(name="macro", against=SCRATCH, value=0.3, low=0.2, high=0.4, p=0.001, p_holm=0.002, subjects=60)
    subsets = (SubsetScore(sequences=("flair", "t1w"), score=scores[0], left_out=3),)
    return TaskResult(
        task="zero_shot",
        split="test",
        simulated=True,
        subjects=60,
        studies=60,
        scores=scores,
        comparisons=(gap,),
        subsets=subsets,
        notes=(NASTY,),
    )


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"recipe": {"class": "tomoglot.recipes.medmap:MedMAP.Config"}}))
    (folder / "data.json").write_text(json.dumps({"store_digest": "d1g35t", "simulated": True, "sequences": ["t1w"]}))
    lines = [
        {"step": step, "terms": {"study": 3 / step, "sequence": 2 / step}, "learning_rate": 1e-3, "effective_rank": 4.0}
        for step in range(1, 40)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4')
    return folder


@pytest.fixture
def page(run, tmp_path, monkeypatch):
    rows = [SimpleNamespace(report=NASTY + " No mass.", simulated=True, subject="ID-A")]
    rows.append(SimpleNamespace(report="a real report", simulated=False, subject="ID-B"))
    refused = [{"reason": "truncated-gzip", "evidence": NASTY, "sequence": "t1w", "file": "cut-short.nii.gz"}]
    monkeypatch.setattr(report, "rejected_rows", lambda store: refused)
    store = SimpleNamespace(rows=rows, plan=Plan(), path=tmp_path)
    return report.write_report(tmp_path, run=run, results=[result()], store=store).read_text(encoding="utf-8")


def test_the_page_reaches_for_nothing_outside_itself(page):
    assert not re.search(r"https?://|<script|<link|@import|url\(", page)
    assert set(re.findall(r'src="([^,"]*)', page)) == {"data:image/png;base64"}


def test_the_page_is_well_formed(page):
    void, open_tags = {"meta", "img", "br"}, []

    class Checker(HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag not in void:
                open_tags.append(tag)

        def handle_endtag(self, tag):
            assert open_tags.pop() == tag

    Checker().feed(page)
    assert not open_tags


def test_what_a_person_must_see_is_there(page):
    for wanted in (
        "Simulated data",
        "Research use only",
        "0.870 [0.790, 0.920]",
        "from scratch",
        "flair + t1w",
        "truncated-gzip",
        "cut-short.nii.gz",
        "d1g35t",
        "MedMAP",
        "p = 0.002",
    ):
        assert wanted in page, wanted
    assert page.count("data:image/png") == 5


def test_text_from_outside_is_escaped_and_real_reports_and_subjects_stay_out(page):
    assert "&lt;script&gt;" in page and NASTY not in page
    assert "No mass." in page and "a real report" not in page
    assert "ID-A" not in page


def test_a_run_is_reported_again_from_its_folder(run):
    result().save(run / "results")
    text = report.report_run(run).read_text(encoding="utf-8")
    assert "zero_shot" in text and "0.870 [0.790, 0.920]" in text


def test_learned_templates_are_drawn_where_a_run_has_them(run):
    assert "Learned templates" not in report.report_run(run).read_text(encoding="utf-8")
    (run / "templates").mkdir()
    for name in ("flair", "t1w"):
        voxels = np.random.default_rng(0).normal(size=(6, 8, 5)).astype(np.float32)
        write_nifti(run / "templates" / f"{name}.nii.gz", Volume(voxels=voxels, affine=np.eye(4)))
    text = report.report_run(run).read_text(encoding="utf-8")
    assert "Simulated: learned templates of flair, t1w, middle slices" in text
    assert "Learned from simulated data." in text


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="run folder"):
        report.report_run(tmp_path)
