"""A study is in the store whole or not at all, a killed run is finished by the next, and the result is the same."""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tomoglot.store import layout
from tomoglot.store.catalogue import query
from tomoglot.store.plan import Plan
from tomoglot.store.reader import Store
from tomoglot.store.verify import verify
from tomoglot.store.writer import read_split, write_store
from tomoglot.studies.source import RejectedRow, Sources

WRITER = """
import pickle, sys
from pathlib import Path
from tomoglot.store.plan import Plan
from tomoglot.store.writer import write_store
if __name__ == "__main__":
    sources = pickle.loads(Path(sys.argv[1]).read_bytes())
    print("ready", flush=True)
    write_store(sources, Path(sys.argv[2]), Plan(), workers=int(sys.argv[3]))
"""


def start_writer(folder: Path, sources: Sources, out: Path, workers: int) -> subprocess.Popen:
    import pickle

    (folder / "writer.py").write_text(WRITER)
    (folder / "sources.pickle").write_bytes(pickle.dumps(sources))
    command = [sys.executable, str(folder / "writer.py"), str(folder / "sources.pickle"), str(out), str(workers)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_at_random_points_and_run_again_it_is_the_same_store(make_cohort, tmp_path, workers):
    sources = make_cohort(5, shape=(64, 64, 64))
    whole = write_store(sources, tmp_path / "whole", Plan())
    out = tmp_path / "killed"
    draw = random.Random(workers)
    interrupted = 0
    for stage in (0, 1, 3) if workers == 1 else (2,):
        process = start_writer(tmp_path, sources, out, workers)
        # Wait for the run to begin its next study, then strike at a random moment of it.
        while process.poll() is None and len(list((out / "studies").glob("*"))) <= stage:
            time.sleep(0.001)
        time.sleep(draw.uniform(0.0, 0.04))
        process.kill()
        # The pipes close when the workers are gone too: none outlives the run.
        output = process.communicate(timeout=60)
        interrupted += process.returncode == -signal.SIGKILL
        assert process.returncode in (0, -signal.SIGKILL), output
        # Whatever is visible is whole: its record is sealed and names the digest of each of its files.
        for folder in (out / "studies").glob("[0-9a-f]*"):
            record = layout.unseal((folder / "record.json").read_bytes(), "record.json")
            assert record["files"] == {
                name: layout.digest_file(folder / name) for name in layout.files_under(folder) if name != "record.json"
            }
        if not (out / "store.json").exists():
            with pytest.raises(ValueError, match="interrupted"):
                Store.open(out)
    assert interrupted >= 1
    before = {path.name: path.stat().st_ino for path in (out / "studies").glob("[0-9a-f]*")}
    summary = write_store(sources, out, Plan())
    assert summary.digest == whole.digest
    assert summary.skipped == len(before)
    assert all((out / "studies" / name).stat().st_ino == inode for name, inode in before.items())
    assert verify(out) == []
    assert Store.open(out).rows == Store.open(tmp_path / "whole").rows


def test_two_workers_write_what_one_writes(cohort, store_path, tmp_path):
    calls = []
    summary = write_store(cohort, tmp_path / "two", Plan(), workers=2, progress=lambda *done: calls.append(done))
    assert summary.digest == Store.open(store_path).digest
    assert calls == [(done, 5) for done in range(6)]


def test_a_second_run_writes_nothing_and_a_changed_study_alone_is_written_again(make_cohort, tmp_path):
    sources, out = make_cohort(3), tmp_path / "store"
    first = write_store(sources, out, Plan())
    inodes = {path.name: path.stat().st_ino for path in (out / "studies").iterdir()}
    again = write_store(sources, out, Plan())
    assert (again.accepted, again.skipped, again.digest) == (3, 3, first.digest)
    changed = [replace(sources.studies[0], labels={"mass": 1.0}), *sources.studies[1:]]
    third = write_store(Sources(studies=changed, rejected=[]), out, Plan())
    assert (third.accepted, third.skipped) == (3, 2)
    assert third.digest != first.digest
    moved = [path.name for path in (out / "studies").iterdir() if path.stat().st_ino != inodes[path.name]]
    assert moved == [layout.study_key("subject-0", "01")]
    assert verify(out) == []


def test_another_plan_is_refused_and_the_difference_is_named(store_path, cohort):
    with pytest.raises(ValueError, match=r"different: codec \(zstd there, lz4 now\)"):
        write_store(cohort, store_path, Plan(codec="lz4"))


def test_a_subject_keeps_its_split_when_others_join_and_the_seed_changes(make_cohort, tmp_path):
    sources, out = make_cohort(6), tmp_path / "store"
    write_store(Sources(studies=sources.studies[:3], rejected=[]), out, Plan(), split_fractions={"train": 1.0})
    write_store(sources, out, Plan(), split_fractions={"test": 1.0}, seed=5)
    assert read_split(out / "split.json") == {f"subject-{n}": "train" if n < 3 else "test" for n in range(6)}
    assert {row.subject: row.split for row in Store.open(out).rows} == read_split(out / "split.json")


def test_the_sources_own_split_is_kept_and_half_a_split_is_refused(cohort, tmp_path):
    own = [replace(study, split="val") for study in cohort.studies]
    write_store(Sources(studies=own, rejected=[]), tmp_path / "own", Plan())
    assert {row.split for row in Store.open(tmp_path / "own").rows} == {"val"}
    with pytest.raises(ValueError, match="5 studies name another split"):
        moved = [replace(study, split="test") for study in cohort.studies]
        write_store(Sources(studies=moved, rejected=[]), tmp_path / "own", Plan())
    with pytest.raises(ValueError, match="1 of 5 studies name a split"):
        write_store(Sources(studies=[own[0], *cohort.studies[1:]], rejected=[]), tmp_path / "half", Plan())


def test_bad_studies_are_counted_and_never_stop_the_good_ones(make_cohort, tmp_path):
    sources, out = make_cohort(4), tmp_path / "store"
    for series in sources.studies[0].series:
        series.path.write_bytes(b"not an image")
    sources.studies[1].series[0].path.write_bytes(sources.studies[1].series[0].path.read_bytes()[:-200])
    earlier = RejectedRow(reason="bad-row", evidence="from the table")
    everything = Sources(studies=[*sources.studies, sources.studies[2]], rejected=[earlier])
    for attempt in (1, 2):
        summary = write_store(everything, out, Plan())
        assert (summary.accepted, summary.skipped) == (3, 0 if attempt == 1 else 3)
        reasons = [row["reason"] for row in query(out, "SELECT reason FROM rejected ORDER BY reason")]
        assert len(reasons) == summary.rejected
        assert {"bad-row", "duplicate-study", "no-usable-series"} <= set(reasons)
        # The series lost by an accepted study is still told when that study is skipped.
        lost = query(out, "SELECT sequence FROM rejected WHERE subject = 'subject-1'")
        assert lost == [{"sequence": "t1w"}]
    assert query(out, "SELECT count(*) AS n FROM accepted") == [{"n": 3}]
    assert verify(out) == []


def test_a_study_that_goes_bad_leaves_the_store(make_cohort, tmp_path):
    sources, out = make_cohort(2), tmp_path / "store"
    write_store(sources, out, Plan())
    for series in sources.studies[0].series:
        series.path.write_bytes(b"no longer an image")
    assert write_store(sources, out, Plan()).accepted == 1
    assert [row.subject for row in Store.open(out).rows] == ["subject-1"]
    assert verify(out) == []


def test_no_study_accepted_is_an_error_that_says_where_to_look(make_cohort, tmp_path):
    sources = make_cohort(1)
    for series in sources.studies[0].series:
        series.path.unlink()
    with pytest.raises(ValueError, match=r"none of 1 studies was accepted; rejected\.parquet"):
        write_store(sources, tmp_path / "store", Plan())


def test_two_writers_at_once_are_refused(cohort, tmp_path):
    import fcntl

    out = tmp_path / "store"
    out.mkdir()
    handle = os.open(out, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        with pytest.raises(ValueError, match="another ingest"):
            write_store(cohort, out, Plan())
    finally:
        os.close(handle)


def test_no_subject_is_named_by_a_path(store_path, cohort):
    names = "\n".join(layout.files_under(store_path))
    assert not any(study.subject in names for study in cohort.studies)
