"""What a store is not written into, and what does not stand in the way of the next ingest."""

import pytest

from tomoglot.store import conform
from tomoglot.store.plan import Plan
from tomoglot.store.reader import Store
from tomoglot.store.writer import write_store
from tomoglot.studies.source import Sources


def test_a_folder_of_other_files_stays_as_it_is(cohort, tmp_path):
    for there in ("thesis.txt", "studies/mine.txt"):
        (tmp_path / there).parent.mkdir(exist_ok=True)
        (tmp_path / there).write_text("mine")
        with pytest.raises(ValueError, match="is not empty and holds no store"):
            write_store(cohort, tmp_path, Plan())
        (tmp_path / there).unlink()
    # What a run that was killed at its first step leaves.
    assert [path.name for path in tmp_path.iterdir()] == ["studies"]
    assert write_store(cohort, tmp_path, Plan()).accepted == 5


def test_a_plan_by_which_nothing_was_accepted_does_not_bind_the_next_run(make_cohort, tmp_path):
    sources = make_cohort(2)
    paths = {series.path: series.path.read_bytes() for study in sources.studies for series in study.series}
    for path in paths:
        path.write_bytes(b"not an image")
    with pytest.raises(ValueError, match="none of 2 studies was accepted"):
        write_store(sources, tmp_path / "store", Plan(field_voxels=(8, 8, 8)))
    for path, content in paths.items():
        path.write_bytes(content)
    assert write_store(sources, tmp_path / "store", Plan()).accepted == 2
    assert Store.open(tmp_path / "store").plan == Plan()
    with pytest.raises(ValueError, match=r"another plan.*--plan-of store"):
        write_store(sources, tmp_path / "store", Plan(field_voxels=(8, 8, 8)))


def test_a_second_source_is_counted_apart_from_what_the_store_holds(cohort, tmp_path):
    first = Sources(studies=cohort.studies[:3], rejected=[])
    second = Sources(studies=cohort.studies[3:], rejected=[])
    assert write_store(first, tmp_path / "store", Plan()).stored == 3
    done = write_store(second, tmp_path / "store", Plan())
    assert (done.accepted, done.skipped, done.stored) == (2, 0, 5)


def test_a_field_that_does_not_fit_into_memory_is_refused_before_anything_is_written(cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(conform, "available_bytes", lambda: 2**30)
    with pytest.raises(
        ValueError, match=r"300 x 300 x 300 .* 0\.4 GiB .*sequences: 3.* 1\.1 GiB for 3 .* 1\.0 GiB are"
    ):
        write_store(cohort, tmp_path / "store", Plan(field_voxels=(300, 300, 300)), workers=3)
    assert not (tmp_path / "store").exists()
    conform.check_memory(Plan(field_voxels=(300, 300, 300)), sequences=3, workers=2)


def test_the_memory_of_this_machine_is_known():
    assert (conform.available_bytes() or 0) > 2**20
