"""Labels that rules read from reports are kept apart from given ones, from the table to what a task says."""

from dataclasses import replace

from tomoglot.store.catalogue import study_digest
from tomoglot.store.plan import Plan
from tomoglot.store.reader import Store
from tomoglot.store.verify import verify
from tomoglot.store.writer import write_store
from tomoglot.studies.findings import LISTS, mine_labels
from tomoglot.studies.source import Sources
from tomoglot.studies.study import Report
from tomoglot.tasks.embeddings import mined_note


def test_mined_labels_are_named_in_the_store_and_in_what_a_task_says(make_cohort, tmp_path):
    sources = make_cohort(2)
    studies = [replace(study, report=Report(text="A mass. No infarct.")) for study in sources.studies]
    mined = mine_labels(Sources(studies=studies, rejected=[]), LISTS["brain"])
    write_store(mined, tmp_path / "store", Plan())
    store = Store.open(tmp_path / "store")
    assert not verify(tmp_path / "store")
    given, bare = sorted(store.rows, key=lambda row: row.subject)
    assert given.labels == {"mass": 0.0, "infarct": 0.0, "normal": 0.0} and given.labels_mined == ("infarct", "normal")
    assert bare.labels_mined == ("infarct", "mass", "normal")
    (note,) = mined_note(store)
    assert note.startswith("LABELS MINED") and "infarct, mass, normal (2 studies)" in note


def test_given_labels_are_not_called_mined(store_path):
    store = Store.open(store_path)
    assert mined_note(store) == ()
    assert all(row.labels_mined == () for row in store.rows)


def test_a_study_without_mined_labels_has_the_digest_it_had_before_they_were_kept():
    row = {"key": "a", "labels": {"mass": 1.0}, "digest": "old"}
    assert study_digest({**row, "labels_mined": []}, {}) == study_digest(row, {})
    assert study_digest({**row, "labels_mined": ["mass"]}, {}) != study_digest(row, {})
