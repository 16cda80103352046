"""Tables in four formats lead to the same studies; what cannot be used is a row, and the rest is kept."""

import json
from pathlib import Path

import duckdb
import pytest
from pydantic import BaseModel

from tomoglot.studies.table import read_rows, read_table, write_table

REPORT = 'FINDINGS: A "soft", small mass.\nIMPRESSION: Mass.'
NAMES = ("subject", "study", "sequence", "path", "report", "label:mass", "split", "simulated")
CELLS = (
    ("007", "a", "T1W", "x/t1.nii.gz", REPORT, "1", "train", "true"),
    ("007", "a", "T2", "x/t2.nii.gz", "", "", "train", "true"),
    ("008", "", "flair", "y.nii", "", "0", "test", ""),
)
ROWS = [dict(zip(NAMES, cells, strict=True)) for cells in CELLS]


def write(folder: Path, rows, suffix: str) -> Path:
    path = folder / f"studies{suffix}"
    names = list(dict.fromkeys(name for row in rows for name in row))
    if suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif suffix == ".parquet":
        with duckdb.connect() as connection:
            connection.execute("CREATE TABLE t (" + ", ".join(f'"{name}" VARCHAR' for name in names) + ")")
            for row in rows:
                connection.execute(f"INSERT INTO t VALUES ({', '.join('?' * len(names))})", [row.get(n) for n in names])
            connection.execute(f"COPY t TO '{path}' (FORMAT parquet)")
    else:
        separator = "\t" if suffix == ".tsv" else ","
        lines = [names] + [[row.get(name, "") for name in names] for row in rows]
        quoted = [['"' + str(cell).replace('"', '""') + '"' for cell in line] for line in lines]
        path.write_text("\ufeff" + "".join(separator.join(line) + "\n" for line in quoted), encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_format_leads_to_the_same_studies(suffix, tmp_path):
    sources = read_table(write(tmp_path, ROWS, suffix))
    first, second = sources.studies
    assert not sources.rejected
    assert (first.subject, first.study, first.split, first.simulated) == ("007", "a", "train", True)
    assert [(series.sequence, series.path) for series in first.series] == [
        ("t1w", tmp_path / "x/t1.nii.gz"),
        ("t2w", tmp_path / "x/t2.nii.gz"),
    ]
    assert first.report is not None and first.report.text == REPORT
    assert first.report.findings == 'A "soft", small mass.'
    assert (first.labels, second.labels) == ({"mass": 1.0}, {"mass": 0.0})
    assert (second.subject, second.study, second.report, second.simulated) == ("008", "008", None, False)


def test_any_column_but_the_subject_may_be_missing(tmp_path):
    (only,) = read_table(write(tmp_path, [{"subject": "s", "path": "s_FLAIR.nii.gz"}], ".csv")).studies
    assert only.series[0].sequence == "flair" and only.labels == {} and only.split is None
    (only,) = read_table(write(tmp_path, [{"subject": "s", "report": "Normal."}], ".csv")).studies
    assert only.series == () and only.report is not None


def test_no_subject_column_names_what_is_there_and_the_nearest(tmp_path):
    with pytest.raises(ValueError, match="sequence, subject_id; the nearest is 'subject_id'"):
        read_table(write(tmp_path, [{"subject_id": "s", "sequence": "t1w"}], ".csv"))


def test_columns_are_mapped_and_a_wrong_map_is_refused(tmp_path):
    path = write(tmp_path, [{"pid": "s", "img": "a_t1w.nii", "tumour": "1"}], ".csv")
    (only,) = read_table(path, columns={"pid": "subject", "img": "path", "tumour": "label:mass"}).studies
    assert only.subject == "s" and only.series[0].path == tmp_path / "a_t1w.nii" and only.labels == {"mass": 1.0}
    with pytest.raises(ValueError, match="no column 'pod'"):
        read_table(path, columns={"pod": "subject"})
    with pytest.raises(ValueError, match="'subjekt' is none of"):
        read_table(path, columns={"pid": "subjekt"})


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([{"path": "a.nii", "sequence": "t1w"}, {"path": "b.nii", "sequence": "T1"}], "duplicate-series"),
        ([{"path": "a.nii", "sequence": ""}], "no-sequence"),
        ([{"path": "a.nii", "sequence": "t1;w"}], "bad-sequence-name"),
        ([{"label:mass": "maybe"}], "bad-label"),
        ([{"label:mass": "3"}], "bad-label"),
        ([{"labels": "{not json"}], "bad-label"),
        ([{"label:mass": "1"}, {"label:mass": "0"}], "conflicting-labels"),
        ([{"report": "Normal."}, {"report": "A mass."}], "conflicting-report"),
        ([{"mask": "a.nii"}, {"mask": "b.nii"}], "conflicting-mask"),
        ([{"report": "absent.txt"}], "report-absent"),
        ([{"report": "latin.txt"}], "report-unreadable"),
        ([{"report": "../secret.txt"}], "report-outside"),
        ([{"subject": " "}], "no-subject"),
    ],
)
def test_what_cannot_be_used_is_a_row_and_the_good_study_stays(rows, reason, tmp_path):
    (tmp_path / "latin.txt").write_bytes("Ödem".encode("latin-1"))
    (tmp_path.parent / "secret.txt").write_text("not for you")
    rows = [{"subject": "s", **row} for row in rows] + [{"subject": "good", "path": "g.nii", "sequence": "pd"}]
    sources = read_table(write(tmp_path, rows, ".csv"))
    assert [row.reason for row in sources.rejected] == [reason]
    assert sources.studies[-1].subject == "good" and len(sources.studies[-1].series) == 1
    bad = sources.studies[0]
    assert not bad.labels and bad.report is None and bad.mask is None
    assert str(tmp_path) not in sources.rejected[0].evidence


def test_the_first_of_two_series_is_kept_and_the_same_row_twice_is_no_conflict(tmp_path):
    row = {"subject": "s", "path": "a.nii", "sequence": "t1w"}
    sources = read_table(write(tmp_path, [row, row, row | {"path": "b.nii"}], ".csv"))
    assert [series.path.name for series in sources.studies[0].series] == ["a.nii"]
    assert len(sources.rejected) == 1


def test_a_report_may_be_a_file_and_root_may_be_elsewhere(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "r.txt").write_text("IMPRESSION: Normal.")
    path = write(tmp_path, [{"subject": "s", "report": "r.txt", "path": "a_t1w.nii"}], ".csv")
    (only,) = read_table(path, root=tmp_path / "data").studies
    assert only.report is not None and only.report.impression == "Normal."
    assert only.series[0].path == tmp_path / "data" / "a_t1w.nii"


def test_labels_may_be_one_json_column_and_unknown_is_no_label(tmp_path):
    row = {"subject": "s", "labels": {"mass": 1, "oedema": None, "infarct": False}}
    for cell in (row["labels"], json.dumps(row["labels"])):
        (only,) = read_table(write(tmp_path, [{**row, "labels": cell}], ".jsonl")).studies
        assert only.labels == {"mass": 1.0, "infarct": 0.0}


def test_numbers_from_parquet_are_subjects_as_written(tmp_path):
    path = tmp_path / "t.parquet"
    with duckdb.connect() as connection:
        connection.execute(
            f"COPY (SELECT 7.0::DOUBLE subject, 'nan'::DOUBLE \"label:mass\") TO '{path}' (FORMAT parquet)"
        )
    (only,) = read_table(path).studies
    assert only.subject == "7" and only.labels == {}


@pytest.mark.parametrize("within_one_study", [True, False])
def test_a_subject_on_two_sides_is_refused_with_a_count_and_no_name(within_one_study, tmp_path):
    rows = [
        {"subject": "Erika", "study": "1", "split": "train"},
        {"subject": "Erika", "study": "1" if within_one_study else "2", "split": "test"},
        {"subject": "Max", "study": "1", "split": "test"},
    ]
    with pytest.raises(ValueError, match="1 of 2 subjects") as caught:
        read_table(write(tmp_path, rows, ".csv"))
    assert "Erika" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("t.parquet", b"PAR1 no"),
        ("t.jsonl", b"{broken\n"),
        ("t.jsonl", b"[1]\n"),
        ("t.xlsx", b"x"),
        ("t.csv", b"subject\n\xff\xfe\n"),
    ],
)
def test_a_file_that_is_no_table_is_refused_without_its_folder(name, data, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=name) as caught:
        read_table(tmp_path / name)
    assert str(tmp_path) not in str(caught.value)


def test_a_file_name_with_pattern_letters_means_itself(tmp_path):
    path = write(tmp_path, ROWS, ".csv").rename(tmp_path / "a[1]*.csv")
    assert len(read_table(path).studies) == 2


class Inner(BaseModel):
    low: float
    names: tuple[str, ...] = ()


class Record(BaseModel):
    key: str
    count: int
    share: float | None = None
    good: bool
    shape: tuple[int, int, int]
    affine: tuple[tuple[float, ...], ...]
    labels: dict[str, float]
    inner: dict[str, Inner]
    loose: dict[str, float] | list[int] | None = None


RECORD = Record(
    key="it's \"quoted\"\n", count=2**40, good=True, shape=(1, 2, 3), affine=((1.5, 0.0), (0.0, 0.1)),
    labels={"mass": 0.1}, inner={"t1w": Inner(low=0.1, names=("a", "b"))},
)  # fmt: skip


def test_rows_come_back_as_they_were_written_and_the_file_is_the_same_twice(tmp_path):
    rows = [RECORD, RECORD.model_copy(update={"share": 0.25, "labels": {}, "inner": {}})] * 50
    for name in ("a.parquet", "b.parquet"):
        write_table(rows, tmp_path / name, Record)
    assert read_rows(tmp_path / "a.parquet", Record) == rows
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "b.parquet"]


def test_a_table_without_rows_keeps_its_columns(tmp_path):
    write_table([], tmp_path / "a.parquet", Record)
    assert read_rows(tmp_path / "a.parquet", Record) == []
    found = duckdb.sql(f"SELECT * FROM '{tmp_path / 'a.parquet'}'").columns
    assert found == list(Record.model_fields)


def test_a_table_says_what_the_numbers_of_its_masks_mean(tmp_path):
    (tmp_path / "studies.csv").write_text(
        "subject,sequence,path,mask,mask_labels\n"
        'a,t1w,a.nii,a_mask.nii,"{""1"": ""plaque"", ""2"": ""rim""}"\n'
        "b,t1w,b.nii,b_mask.nii,\n"
    )
    first, second = read_table(tmp_path / "studies.csv").studies
    assert first.mask_labels == {1: "plaque", 2: "rim"}
    assert second.mask is not None and not second.mask_labels


@pytest.mark.parametrize("given", ['"{""1"": ""tumour""}"', "plaque", '"{""x"": ""rim""}"', "[1]"])
def test_a_mask_whose_numbers_cannot_be_understood_is_left_out(tmp_path, given):
    (tmp_path / "studies.csv").write_text(f"subject,sequence,path,mask,mask_labels\na,t1w,a.nii,m.nii,{given}\n")
    sources = read_table(tmp_path / "studies.csv")
    assert sources.studies[0].mask is None and sources.studies[0].series
    assert [row.reason for row in sources.rejected] == ["bad-mask-labels"]
