"""A store holds what a curation finds: measures, pictures, copies and leaks by its own split, and a page of them."""

from dataclasses import replace

import duckdb
import numpy as np
import pytest

from tomoglot.serve.quality import write_quality
from tomoglot.store import layout, looks
from tomoglot.store.catalogue import query
from tomoglot.store.plan import Plan
from tomoglot.store.reader import Store
from tomoglot.store.verify import verify
from tomoglot.store.writer import write_store
from tomoglot.studies.curate import curate
from tomoglot.studies.nifti import write_nifti
from tomoglot.studies.source import Sources
from tomoglot.studies.study import Series, Study, Volume

# Of the five studies of `cohort` (conftest.py), as the version before this one wrote them.
DIGEST_BEFORE = "edf928159478a42a8dc1767c6e6fba0be4c64230aadb97540b6f5ea038476da8"


def head(seed):
    """Coarse blocks of one outer form: no two seeds look alike."""
    blocks = np.random.default_rng(seed).integers(20, 200, (3, 3, 3)).repeat(6, 0).repeat(6, 1).repeat(6, 2)
    return np.pad(blocks, 3).astype(np.int16)


@pytest.fixture
def copied(tmp_path):
    """Three simulated studies of two series; the third's T1w is the first's, brighter."""
    studies = []
    for at in range(3):
        series = []
        for sequence, seed in (("t1w", 0 if at == 2 else at), ("flair", 10 + at)):
            path = tmp_path / f"raw-{at}_{sequence}.nii.gz"
            write_nifti(path, Volume(voxels=head(seed) * (1 + at), affine=np.diag([4.0, 4, 4, 1])))
            series.append(Series(sequence=sequence, path=path))
        studies.append(Study(subject=f"subject-{at}", study="1", series=tuple(series), simulated=True))
    return Sources(studies=studies, rejected=[])


def sides(sources, *splits):
    studies = [replace(study, split=split) for study, split in zip(sources.studies, splits, strict=True)]
    return Sources(studies=studies, rejected=[])


def test_the_digest_of_a_store_is_what_it_was_looked_at_or_not(store_path, cohort, tmp_path):
    assert Store.open(store_path).digest == DIGEST_BEFORE
    summary = write_store(cohort, tmp_path / "plain", Plan(), look=False)
    assert (summary.digest, summary.num_unlooked) == (DIGEST_BEFORE, 0)
    assert not any((tmp_path / "plain" / name).exists() for name in layout.LOOK_TABLES)
    assert verify(tmp_path / "plain") == []
    with pytest.raises(ValueError, match="no store whose studies were looked at"):
        write_quality(tmp_path / "plain")


def test_a_copy_on_the_other_side_of_the_split_is_counted_as_a_leak(copied, tmp_path):
    across = write_store(sides(copied, "train", "train", "test"), tmp_path / "across", Plan())
    within = write_store(sides(copied, "train", "test", "train"), tmp_path / "within", Plan())
    assert [(done.num_duplicates, done.num_leaks) for done in (across, within)] == [(1, 1), (1, 0)]
    (pair,) = query(tmp_path / "across", "SELECT * FROM duplicates")
    assert ({pair["subject"], pair["other_subject"]}, pair["leak"]) == ({"subject-0", "subject-2"}, True)
    page = write_quality(tmp_path / "across").read_text(encoding="utf-8")
    assert "stand on two sides of the split" in page and "subject-" not in page and "data:image/jpeg" in page
    assert verify(tmp_path / "across") == []


def test_the_split_that_the_store_drew_is_the_one_that_leaks(copied, tmp_path):
    summary = write_store(copied, tmp_path / "store", Plan(), split_fractions={"train": 0.5, "test": 0.5}, seed=0)
    split = {row.subject: row.split for row in Store.open(tmp_path / "store").rows}
    assert {row["split"] for row in query(tmp_path / "store", "SELECT split FROM series")} == set(split.values())
    assert summary.num_leaks == int(split["subject-0"] != split["subject-2"])


def test_a_store_finds_what_a_curation_finds(copied, tmp_path):
    sources = sides(copied, "train", "train", "test")
    write_store(sources, tmp_path / "store", Plan(), workers=2)
    done = curate(sources, tmp_path / "curated")
    assert done.num_leaks == 1
    for table, columns in {
        "series": "* EXCLUDE picture",
        "accepted": "*",
        "duplicates": "kind, likeness, leak",
    }.items():
        ask = f"SELECT {columns} FROM {{}} ORDER BY ALL"
        theirs = duckdb.sql(ask.format(f"read_parquet('{tmp_path}/curated/{table}.parquet')")).fetchall()
        assert [tuple(row.values()) for row in query(tmp_path / "store", ask.format(table))] == theirs


def test_skipped_studies_keep_their_rows_and_nothing_is_searched_twice(copied, tmp_path, monkeypatch):
    sources, out = sides(copied, "train", "train", "test"), tmp_path / "store"
    first = write_store(sources, out, Plan())
    monkeypatch.setattr(looks, "find_duplicates", None)
    again = write_store(sources, out, Plan())
    assert again == replace(first, skipped=3)
    monkeypatch.undo()
    # The search comes back when its table was lost, and sees a study that these sources do not hold.
    (out / "duplicates.parquet").unlink()
    part = write_store(Sources(studies=sources.studies[1:], rejected=[]), out, Plan())
    assert (part.skipped, part.num_leaks) == (2, 1)
    assert query(out, "SELECT count(DISTINCT subject) AS n FROM series") == [{"n": 3}]


def test_a_store_of_the_version_before_opens_verifies_and_says_what_it_cannot_compare(copied, tmp_path):
    sources, out = sides(copied, "train", "train", "test"), tmp_path / "store"
    old = write_store(sources, out, Plan(), look=False)
    assert Store.open(out).read_crop(Store.open(out).rows[0], (0, 0, 0), (4, 4, 4)).shape[1:] == (4, 4, 4)
    one = write_store(Sources(studies=sources.studies[:1], rejected=[]), out, Plan())
    assert (one.skipped, one.num_unlooked, one.num_leaks, one.digest) == (0, 2, 0, old.digest)
    assert "2 accepted studies are missing here" in write_quality(out).read_text(encoding="utf-8")
    every = write_store(sources, out, Plan())
    assert (every.skipped, every.num_unlooked, every.num_leaks, every.digest) == (1, 0, 1, old.digest)
    assert "are missing here" not in write_quality(out).read_text(encoding="utf-8")
    assert verify(out) == []


def test_a_damaged_look_is_found_and_costs_the_look_only(copied, tmp_path):
    out = tmp_path / "store"
    write_store(copied, out, Plan())
    folder = next((out / "studies").iterdir())
    (folder / "series.json").write_bytes(b"{}")
    assert [fault.file for fault in verify(out)] == [f"studies/{folder.name}/series.json"]
    assert write_store(copied, out, Plan()).num_unlooked == 1
