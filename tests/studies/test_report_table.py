"""Reports from any table, or a file each, go to the one study they name; the rest is listed, nothing is guessed."""

import json

import duckdb
import pytest

from tomoglot.studies.report import read_report
from tomoglot.studies.report_table import ReportText, ReportTexts, StudyKeys, join, read_reports

ROWS = [
    {"AccessionNumber": "A1", "Befund": "Keine Blutung, größer.", "Beurteilung": "Normal."},
    {"AccessionNumber": "A2", "Befund": "Eine Läsion.", "Beurteilung": ""},
]


def delimited(rows, separator=","):
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    return "".join(separator.join('"' + cell.replace('"', '""') + '"' for cell in line) + "\r\n" for line in lines)


def keys(subject, study, accession="", own=None):
    return StudyKeys(subject=subject, study=(study,), accession=accession, own=own, row=(f"s-{subject}", f"v-{study}"))


def text_of(report):
    return report and report.text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_columns_are_guessed_sections_joined_and_the_encoding_found(tmp_path, separator, encoding):
    path = tmp_path / "export.csv"
    path.write_bytes(delimited(ROWS, separator).encode(encoding))
    texts = read_reports(path)
    first, second = texts.reports
    assert (first.accession, first.study, first.subject, first.row) == ("A1", "", "", 1)
    assert first.report.text == "FINDINGS: Keine Blutung, größer.\nIMPRESSION: Normal."
    assert (first.report.findings, first.report.impression) == ("Keine Blutung, größer.", "Normal.")
    assert second.report.text == "FINDINGS: Eine Läsion." and second.report.impression == ""
    # What was assumed is said: once, with a count.
    assumed = [("report-encoding-assumed", "2 reports are used as cp1252")] if encoding == "cp1252" else []
    assert [(row.reason, row.evidence.split(",")[0]) for row in texts.rejected] == assumed


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_json_lines_and_parquet_lead_to_the_same_reports(tmp_path, suffix):
    path = tmp_path / f"export{suffix}"
    if suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    else:
        lines = tmp_path / "lines.jsonl"
        lines.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        with duckdb.connect() as connection:
            connection.execute(f"COPY (SELECT * FROM read_json('{lines}')) TO '{path}' (FORMAT parquet)")
    (tmp_path / "export.csv").write_text(delimited(ROWS))
    assert read_reports(path).reports == read_reports(tmp_path / "export.csv").reports


def test_columns_are_mapped_and_what_is_missing_names_the_nearest(tmp_path):
    path = tmp_path / "r.csv"
    path.write_text("Fall,Wortlaut,patient_id\n7,Normal.,p\n")
    (one,) = read_reports(path, columns={"Fall": "study", "Wortlaut": "report"}).reports
    assert (one.study, one.subject, one.report.text) == ("7", "p", "Normal.")
    (one,) = read_reports(path, columns={"Fall": "study", "Wortlaut": "report", "patient_id": "ignore"}).reports
    assert one.subject == ""
    for columns, message in (
        ({"fall": "study"}, "no column 'fall'.*did you mean 'Fall'"),
        ({"Fall": "case"}, "'case' is none of accession"),
        ({}, "no column of .* is the report; say which with --report-column NAME=report"),
    ):
        with pytest.raises(ValueError, match=message):
            read_reports(path, columns=columns)
    path.write_text("acession,text\n1,Normal.\n")
    with pytest.raises(ValueError, match="is the study, perhaps 'acession'; say which with --report-column acession="):
        read_reports(path)
    path.write_text("study,exam,text\n1,2,Normal.\n")
    with pytest.raises(ValueError, match="'exam' and 'study' both look like the study"):
        read_reports(path)


def test_a_torn_table_and_one_of_two_encodings_are_refused_as_a_whole(tmp_path):
    path = tmp_path / "r.csv"
    for data, message in (
        (b"study,report\n1,Normal.,more\n", "1 rows have more or fewer cells"),
        (b'study,report\n1,"Normal.\n', "cannot be read as a table"),
        ("study,report\n1,größer\n".encode() + "2,größer\n".encode("cp1252"), "cannot be read as a table"),
        ("study,report\n1,Normal, ağır.\n".encode("cp1254"), "report-encoding.*name it"),
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=message):
            read_reports(path)
    with pytest.raises(ValueError, match="does not exist"):
        read_reports(tmp_path / "none.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no \.txt file"):
        read_reports(tmp_path / "empty")


def test_one_broken_report_costs_itself_only(tmp_path):
    path = tmp_path / "r.csv"
    (tmp_path.parent / "outside.txt").write_text("not for you")
    (tmp_path / "good.txt").write_bytes("Größer.".encode("utf-16"))
    cells = ("gr\u00c3\u00b6\u00c3\u0178er", "../outside.txt", "absent.txt", "good.txt", "Normal.")
    path.write_text("study,report\n" + "".join(f"{n},{cell}\n" for n, cell in enumerate(cells)) + ",No study.\n")
    texts = read_reports(path)
    assert [one.report.text for one in texts.reports] == ["Größer.", "Normal."]
    reasons = [row.reason for row in texts.rejected]
    assert reasons == ["report-mojibake", "report-outside", "report-absent", "report-unmatched"]
    assert texts.rejected[0].evidence.startswith("row 1 of the report table")


def test_files_one_a_report_in_any_encoding_that_can_be_told(tmp_path):
    words = {"a": ("Größer.", "utf-8"), "b": ("Größere Läsion.", "cp1252"), "c": ("右肺に結節を認めます。", "cp932")}
    (tmp_path / "nested").mkdir()
    for stem, (text, encoding) in words.items():
        (tmp_path / "nested" / f"{stem}.TXT").write_bytes(text.encode(encoding))
    (tmp_path / "d.txt").write_bytes("ağır".encode("cp1254"))
    texts = read_reports(tmp_path)
    assert {one.stem: one.report.text for one in texts.reports} == {stem: text for stem, (text, _) in words.items()}
    refused, *assumed = texts.rejected
    assert (refused.reason, refused.file) == ("report-encoding", "d.txt")
    assert [row.evidence.split(",")[0] for row in assumed] == [
        "1 reports are used as cp1252", "1 reports are used as cp932"
    ]  # fmt: skip
    # A file's name may be a person's number: its alias stands for it.
    joined = join(texts, [], alias=lambda name: f"f-{len(name)}")
    assert {row.file for row in joined.rejected} == {"", "f-5"}
    only = tmp_path / "turkish"
    only.mkdir()
    (only / "d.txt").write_bytes("ağır".encode("cp1254"))
    (one,) = read_reports(only, encoding="cp1254").reports
    assert one.report.text == "ağır"


STUDIES = [keys("p1", "1.2.1", "A1"), keys("p1", "1.2.2", "A2"), keys("p2", "1.2.3", "A3"), keys("p3", "A4")]


@pytest.mark.parametrize(
    ("named", "place"),
    [
        ({"accession": "A2"}, 1),
        ({"accession": "A4"}, 3),
        ({"accession": "A2", "subject": "p1"}, 1),
        ({"accession": "A2", "subject": "somebody's pseudonym"}, 1),
        ({"study": "1.2.3"}, 2),
        ({"study": "1.2.1", "subject": "p1"}, 0),
        ({"subject": "p2"}, 2),
        ({"stem": "p1_1.2.2"}, 1),
        ({"stem": "A3"}, 2),
        ({"stem": "1.2.1"}, 0),
        ({"stem": "p3"}, 3),
        ({"accession": "A2", "subject": "p2"}, "report-ambiguous"),
        ({"subject": "p1"}, "report-ambiguous"),
        ({"stem": "p1"}, "report-ambiguous"),
        ({"accession": "A9"}, "report-unmatched"),
        ({"accession": "p2"}, "report-unmatched"),
        ({"study": "1.2.1", "subject": "p2"}, "report-unmatched"),
        ({"stem": "notes"}, "report-unmatched"),
    ],
)
def test_a_report_goes_to_the_one_study_it_names(named, place):
    texts = ReportTexts(reports=(ReportText(report=read_report("Normal."), row=4, **named),))
    joined = join(texts, STUDIES, alias=lambda name: "f-alias")
    want = [None] * len(STUDIES)
    if isinstance(place, int):
        want[place] = "Normal."
    assert [text_of(report) for report in joined.reports] == want
    assert [row.reason for row in joined.rejected] == ([] if isinstance(place, int) else [place])
    # What a report goes by may be a person's number: it stands in no row.
    for row in joined.rejected:
        assert not any(value in row.model_dump_json() for value in named.values())
        assert row.file == ("f-alias" if "stem" in named else "") and "row 4" in row.evidence


def test_a_name_shared_by_a_study_and_another_subject_is_ambiguous():
    studies = [keys("7", "x"), keys("p", "7")]
    texts = ReportTexts(reports=(ReportText(report=read_report("Normal."), stem="7"),))
    joined = join(texts, studies)
    assert joined.reports == (None, None) and [row.reason for row in joined.rejected] == ["report-ambiguous"]


def test_two_different_reports_of_one_study_are_both_refused_and_equal_ones_are_one():
    def of(*words, own=None):
        texts = ReportTexts(reports=tuple(ReportText(report=read_report(word), accession="A1") for word in words))
        return join(texts, [keys("p", "1", "A1", own=own)])

    assert text_of(of("Normal.", "Normal. ").reports[0]) == "Normal."
    for joined in (of("Normal.", "A mass."), of("A mass.", own=read_report("Normal."))):
        assert joined.reports == (None,)
        (row,) = joined.rejected
        assert (row.subject, row.study, row.reason) == ("s-p", "v-1", "report-conflict")
    assert text_of(of(own=read_report("Own.")).reports[0]) == "Own."
    assert text_of(of("Own.", own=read_report("Own.")).reports[0]) == "Own."
