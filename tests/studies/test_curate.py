"""Curation: a bad series costs the series, a bad study costs the study, and nothing costs the others."""

import os
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from tomoglot.studies.appearance import SeriesRow
from tomoglot.studies.curate import JOURNAL, PICTURES, AcceptedRow, curate, examine, look, look_at_all
from tomoglot.studies.nifti import write_nifti
from tomoglot.studies.source import RejectedRow, Sources
from tomoglot.studies.study import Frame, Rejected, Report, Series, Study, Volume
from tomoglot.studies.table import read_rows


def save(path, values=None, affine=None):
    values = np.random.default_rng(1).integers(0, 9, (6, 6, 6)).astype(np.int16) if values is None else values
    write_nifti(path, Volume(voxels=values, affine=np.eye(4) if affine is None else affine))
    return path


def study(folder, name="s", *, sequences=("t1w", "flair"), **kwargs):
    series = tuple(Series(sequence=seq, path=save(folder / f"{name}_{seq}.nii.gz")) for seq in sequences)
    return Study(subject=name, study="1", series=series, **kwargs)


def test_a_good_study_comes_through_whole(tmp_path):
    mask = save(tmp_path / "mask.nii.gz", np.ones((6, 6, 6), np.float32))
    found = examine(study(tmp_path, mask=mask))
    assert set(found.volumes) == {"t1w", "flair"} and found.rejected == ()
    assert found.mask is not None and found.mask.voxels.dtype == np.uint8


def test_a_bad_series_costs_the_series_only(tmp_path):
    given = study(tmp_path)
    given.series[0].path.write_bytes(given.series[0].path.read_bytes()[:-9])
    found = examine(given)
    assert set(found.volumes) == {"flair"} == {series.sequence for series in found.study.series}
    assert [(row.reason, row.sequence, row.file) for row in found.rejected] == [("truncated", "t1w", "s_t1w.nii.gz")]


def test_names_become_canonical_and_a_second_series_of_one_name_is_refused(tmp_path):
    series = [Series(sequence=name, path=save(tmp_path / f"{i}.nii")) for i, name in enumerate(("T1W", "T1", "a/b"))]
    found = examine(Study(subject="s", study="1", series=tuple(series)))
    assert list(found.volumes) == ["t1w"]
    assert [row.reason for row in found.rejected] == ["duplicate-series", "bad-sequence-name"]


def test_a_study_without_a_good_series_is_rejected_as_a_whole(tmp_path):
    for given in (Study(subject="s", study="1"), study(tmp_path, sequences=("t1w",))):
        for series in given.series:
            series.path.unlink()
        found = examine(given)
        assert not found.volumes and found.rejected[-1].reason == "no-usable-series"


@pytest.mark.parametrize(
    ("values", "shift_mm", "reason"),
    [
        (np.full((6, 6, 6), 0.5, np.float32), 0, "bad-mask"),
        (np.full((6, 6, 6), -1, np.int16), 0, "bad-mask"),
        (np.full((6, 6, 6), 300, np.int16), 0, "bad-mask"),
        (np.ones((6, 6, 6), np.uint8), 500, "mask-elsewhere"),
        (None, 0, "absent"),
    ],
)
def test_a_bad_mask_costs_the_mask_only(values, shift_mm, reason, tmp_path):
    affine = np.eye(4)
    affine[0, 3] = shift_mm
    mask = tmp_path / "mask.nii.gz" if values is None else save(tmp_path / "mask.nii.gz", values, affine)
    found = examine(study(tmp_path, mask=mask))
    assert len(found.volumes) == 2 and found.mask is None and found.study.mask is None
    assert [(row.reason, row.sequence) for row in found.rejected] == [(reason, "mask")]


def test_a_mask_on_another_grid_over_the_same_head_keeps_its_own_affine(tmp_path):
    affine = np.diag([0.5, 0.5, 0.5, 1])
    found = examine(study(tmp_path, mask=save(tmp_path / "mask.nii", np.zeros((9, 9, 9), np.uint8), affine)))
    assert found.mask is not None and np.allclose(found.mask.affine, affine)


def corpus(folder):
    good = [study(folder, f"good{number}") for number in range(3)]
    bad = study(folder, "bad")
    for series in bad.series:
        series.path.write_bytes(b"not an image")
    earlier = RejectedRow(subject="x", reason="no-sequence")
    return Sources(studies=[good[0], bad, *good[1:]], rejected=[earlier])


def test_good_studies_survive_beside_bad_ones_and_workers_change_nothing(tmp_path):
    sources, seen = corpus(tmp_path), []
    one = curate(sources, tmp_path / "one", progress=lambda done, total: seen.append((done, total)))
    assert (one.num_accepted, one.num_rejected) == (3, 4) and seen == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    accepted, rejected = read_rows(one.accepted, AcceptedRow), read_rows(one.rejected, RejectedRow)
    assert [row.subject for row in accepted] == ["good0", "good1", "good2"]
    assert accepted[0].shapes == ((6, 6, 6), (6, 6, 6))
    assert [row.reason for row in rejected] == ["no-sequence", "not-nifti", "not-nifti", "no-usable-series"]
    two = curate(sources, tmp_path / "two", workers=2)
    assert (read_rows(two.accepted, AcceptedRow), read_rows(two.rejected, RejectedRow)) == (accepted, rejected)


def look_or_die(given):
    """As `look`, but the process is gone on reading one study: what an operating system short of memory does."""
    if given.subject == "bad":
        os._exit(1)
    return look(given)


def test_a_process_that_dies_costs_its_study_only(tmp_path):
    studies = corpus(tmp_path).studies
    found = dict(look_at_all(studies, look_or_die, workers=2))
    assert sorted(found) == [0, 1, 2, 3]
    assert found[1].accepted is None and [row.reason for row in found[1].rejected] == ["worker-died"]
    assert all(found[place].accepted is not None for place in (0, 2, 3))


def test_no_memory_for_one_series_is_a_refusal(tmp_path, monkeypatch):
    def starved(*_, **__):
        raise MemoryError

    monkeypatch.setattr("tomoglot.studies.stated.read_nifti", starved)
    assert {row.reason for row in examine(study(tmp_path)).rejected} == {"out-of-memory", "no-usable-series"}


def test_a_split_with_one_subject_on_two_sides_is_refused_before_any_work(tmp_path):
    one = study(tmp_path, split="train")
    sources = Sources(studies=[one, replace(one, study="2", split="test")], rejected=[])
    with pytest.raises(ValueError, match="1 of 1 subjects"):
        curate(sources, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_crosses_a_process_pickles(tmp_path):
    given = study(tmp_path, labels={"mass": 1.0})
    assert pickle.loads(pickle.dumps(look(given))) == look(given)


TABLES = ("accepted.parquet", "rejected.parquet", "series.parquet", "duplicates.parquet")


def contents(folder):
    """Every byte that a curation leaves, but for its journal, whose lines stand in the order of the work."""
    return {file.relative_to(folder): file.read_bytes() for file in sorted(folder.rglob("*.p*"))}


def test_a_second_run_examines_nothing_and_changes_no_byte(tmp_path, monkeypatch):
    sources = corpus(tmp_path)
    curate(sources, tmp_path / "out")
    before = contents(tmp_path / "out")
    assert {str(name) for name in before} >= set(TABLES) and len(list((tmp_path / "out" / PICTURES).iterdir())) == 3
    monkeypatch.setattr("tomoglot.studies.curate.examine", None)
    again = curate(sources, tmp_path / "out")
    assert again.num_kept == 4 and again.num_accepted == 3
    assert contents(tmp_path / "out") == before


def test_only_what_changed_is_examined_again_and_what_left_the_sources_leaves_the_tables(tmp_path):
    sources = corpus(tmp_path)
    curate(sources, tmp_path / "out")
    save(sources.studies[1].series[0].path, np.arange(216, dtype=np.int16).reshape(6, 6, 6))
    fewer = Sources(studies=sources.studies[1:], rejected=[])
    done = curate(fewer, tmp_path / "out")
    assert (done.num_kept, done.num_accepted) == (2, 3)
    assert len(list((tmp_path / "out" / PICTURES).iterdir())) == 3
    curate(fewer, tmp_path / "fresh")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


KILLED = """
import os, pickle, signal, sys
from pathlib import Path
from tomoglot.studies import curate
folder = Path(sys.argv[1])
def progress(done, total):
    if done == 2:
        os.kill(os.getpid(), signal.SIGKILL)
curate.curate(pickle.loads((folder / "sources").read_bytes()), folder / "killed", progress=progress)
"""


def test_a_run_that_was_killed_goes_on_with_the_same_result(tmp_path):
    sources = corpus(tmp_path)
    (tmp_path / "sources").write_bytes(pickle.dumps(sources))
    assert subprocess.run([sys.executable, "-c", KILLED, tmp_path], check=False).returncode == -9
    # And the kill cut the line short that was being written.
    journal = tmp_path / "killed" / JOURNAL
    journal.write_bytes(journal.read_bytes()[:-40])
    assert curate(sources, tmp_path / "killed").num_kept == 1
    curate(sources, tmp_path / "whole")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_two_runs_never_write_one_folder(tmp_path):
    def while_running(done, total):
        with pytest.raises(ValueError, match="another run"):
            curate(sources, tmp_path / "out")

    sources = Sources(studies=[study(tmp_path)], rejected=[])
    assert curate(sources, tmp_path / "out", progress=while_running).num_accepted == 1


def test_what_more_memory_may_mend_is_tried_again(tmp_path, monkeypatch):
    def starved(*_, **__):
        raise MemoryError

    sources = Sources(studies=[study(tmp_path)], rejected=[])
    with monkeypatch.context() as patched:
        patched.setattr("tomoglot.studies.stated.read_nifti", starved)
        assert curate(sources, tmp_path / "out").num_accepted == 0
    done = curate(sources, tmp_path / "out")
    assert (done.num_accepted, done.num_rejected, done.num_kept) == (1, 0, 0)


def test_dicom_series_are_read_by_their_frames_and_no_file_name_is_told(tmp_path, monkeypatch):
    pixels = pytest.importorskip("tomoglot.studies.dicom.pixels")
    values = np.random.default_rng(0).normal(0, 1, (6, 6, 6)).astype(np.float32)

    def read(frames, *, resample_tilt):
        assert resample_tilt is False
        if frames[0].frame:
            raise Rejected("missing-slice", "steps run from 1.00 to 2.00 mm, wanted one step")
        return Volume(voxels=values, affine=np.eye(4))

    monkeypatch.setattr(pixels, "read_volume", read)
    where = tmp_path / "DOE_JANE_19450101.dcm"
    series = [
        Series(sequence=name, path=where, frames=(Frame(path=where, frame=bad),), alias=f"alias-of-{name}")
        for name, bad in (("t1w", 0), ("flair", 1))
    ]
    given = Study(subject="s", study="1", series=tuple(series))
    found = examine(given)
    assert np.array_equal(found.volumes["t1w"].voxels, values)
    assert [(row.reason, row.file) for row in found.rejected] == [("missing-slice", "alias-of-flair")]
    curate(Sources(studies=[given], rejected=[]), tmp_path / "out")
    assert not any(b"DOE_JANE" in file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file())


def test_reports_that_differ_in_case_and_spaces_have_one_digest_and_their_text_is_not_kept(tmp_path):
    texts = ("No mass.", "  no   MASS.", "A mass.")
    given = [study(tmp_path, f"r{at}", report=Report(text=text)) for at, text in enumerate(texts)]
    done = curate(Sources(studies=given, rejected=[]), tmp_path / "out")
    one, same, other = (row.report_digest for row in read_rows(done.accepted, AcceptedRow))
    assert one == same != other
    assert not any(b"mass" in file.read_bytes().lower() for file in (tmp_path / "out").rglob("*") if file.is_file())


def test_measures_follow_the_order_of_the_accepted_table(tmp_path):
    done = curate(Sources(studies=[study(tmp_path, f"m{at}") for at in range(2)], rejected=[]), tmp_path / "out")
    rows = read_rows(done.series, SeriesRow)
    assert [(row.subject, row.sequence, row.tile) for row in rows] == [
        (f"m{at}", name, tile) for at in range(2) for tile, name in enumerate(("t1w", "flair"))
    ]
    assert all((done.series.parent / row.picture).is_file() for row in rows)
    assert all(abs(sum(row.histogram) - 1) < 1e-3 and 0 <= row.foreground <= 1 for row in rows)
