"""Rows come back from Parquet exactly, and SQL reaches the store's tables and nothing else."""

import math

import pytest

from tomoglot.store.catalogue import Intensity, StudyRow, query, read_catalogue, write_catalogue
from tomoglot.store.layout import seal, unseal
from tomoglot.store.reader import Store


def row(**changes) -> StudyRow:
    third = 1 / 3
    values = {
        "key": "0" * 16,
        "subject": "s\"1'",
        "study": "01",
        "split": "train",
        "simulated": True,
        "sequences": ("flair", "t1w"),
        "shape": (3, 4, 5),
        "affine": ((third, 0.0, 0.0, -1e-300), (0.0, math.pi, 0.0, 1e17), (0.0, 0.0, 0.1, 0.1 + 0.2), (0, 0, 0, 1)),
        "intensities": {
            "flair": Intensity(
                scale=third, offset=0.0, mean=math.e, std=1e-9, percentiles={"1": 0.1, "99": 7.3}, foreground=0.7
            )
        },
        "report": "Œdème\n\tof 12 mm; \"no\" 'mass' \\ {}",
        "labels": {"mass": 1.0, "oedema": third},
        "has_mask": False,
        "digest": "f" * 64,
    }
    return StudyRow.model_validate(values | changes)


def test_rows_come_back_exactly(tmp_path):
    rows = (row(), row(subject="s2", report=None, labels={}, intensities={}))
    write_catalogue(reversed(rows), tmp_path / "a folder's.parquet")
    assert read_catalogue(tmp_path / "a folder's.parquet") == rows


def test_an_empty_catalogue_comes_back_empty(tmp_path):
    write_catalogue([], tmp_path / "catalogue.parquet")
    assert read_catalogue(tmp_path / "catalogue.parquet") == ()


def test_what_is_not_a_catalogue_is_refused(tmp_path):
    (tmp_path / "catalogue.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match=r"catalogue\.parquet: not a readable catalogue"):
        read_catalogue(tmp_path / "catalogue.parquet")


def test_sql_counts_what_the_rows_say(store_path):
    rows = Store.open(store_path).rows
    found = query(store_path, "SELECT count(*) AS n, sum(list_contains(sequences, 't2w')::INT) AS t2w FROM catalogue")
    assert found == [{"n": len(rows), "t2w": sum("t2w" in one.sequences for one in rows)}]
    mean = query(store_path, "SELECT intensities['t1w'].mean AS m FROM catalogue ORDER BY subject, study LIMIT 1")
    assert mean == [{"m": rows[0].intensities["t1w"].mean}]
    assert query(store_path, "SELECT spacing_mm[3] AS k FROM catalogue LIMIT 1") == [{"k": 1.25}]


def test_sql_can_neither_read_other_files_nor_be_wrong_in_silence(store_path, tmp_path):
    (tmp_path / "secret.csv").write_text("a\n1\n")
    for sql in (
        f"SELECT * FROM '{tmp_path}/secret.csv'",
        "SELECT nothing FROM nowhere",
        "SET enable_external_access=true",
    ):
        with pytest.raises(ValueError, match="cannot be answered"):
            query(store_path, sql)


def test_a_seal_shows_a_changed_value_and_a_changed_space():
    sealed = seal({"a": 1, "b": "é"})
    assert unseal(sealed, "x") == {"a": 1, "b": "é"}
    for old, new in ((b'"a": 1', b'"a": 2'), (b'"a": 1', b'"a":  1'), (b"}", b"")):
        with pytest.raises(ValueError, match="x: damaged"):
            unseal(sealed.replace(old, new), "x")
