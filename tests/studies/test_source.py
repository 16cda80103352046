"""The reader that fits is found; what was looked for is said where none does."""

import numpy as np
import pytest
from dicom_series import write_series

from tomoglot.studies.pseudonym import Pseudonyms
from tomoglot.studies.source import read_source

TABLE = "subject,study,path,split\na,1,a1_t1w.nii,train\na,2,a2_t1w.nii,train\nb,1,b_t1w.nii,test\n"


def test_a_table_and_the_folder_around_it_are_the_same_source(tmp_path):
    (tmp_path / "studies.csv").write_text(TABLE)
    assert read_source(tmp_path) == read_source(tmp_path / "studies.csv")
    assert len(read_source(tmp_path).studies) == 3


def test_the_table_wins_over_bids_folders_beside_it(tmp_path):
    (tmp_path / "studies.csv").write_text(TABLE)
    (tmp_path / "sub-01" / "anat").mkdir(parents=True)
    assert {study.subject for study in read_source(tmp_path).studies} == {"a", "b"}


def test_nothing_readable_says_what_was_looked_for_and_no_folder_above(tmp_path):
    with pytest.raises(ValueError, match=r"studies\.csv.*open_ms.*BIDS.*DICOM") as caught:
        read_source(tmp_path)
    assert str(tmp_path.parent) not in str(caught.value)
    with pytest.raises(ValueError, match="does not exist"):
        read_source(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no layout 'other'"):
        read_source(tmp_path, layout="other")


def test_reports_of_a_folder_go_only_where_their_name_can_mean_one_study(tmp_path):
    (tmp_path / "studies.csv").write_text(TABLE)
    reports = tmp_path / "reports"
    reports.mkdir()
    # "a" has two studies and "1" is a study of two subjects: neither name means one study.
    for name in ("a_2", "a", "1", "b"):
        (reports / f"{name}.txt").write_text(f"Report {name}.")
    (reports / "broken.txt").write_bytes(b"\xff\xff")
    sources = read_source(tmp_path, reports=reports)
    assert [study.report and study.report.text for study in sources.studies] == [None, "Report a_2.", "Report b."]
    assert {row.file: row.reason for row in sources.rejected} == {
        "broken.txt": "report-encoding", "a.txt": "report-ambiguous", "1.txt": "report-ambiguous"
    }  # fmt: skip


def test_reports_of_a_table_are_joined_by_subject_and_study(tmp_path):
    (tmp_path / "studies.csv").write_text(TABLE)
    (tmp_path / "words.csv").write_text("subject,study,report\na,1,First.\nb,1,Other.\n")
    texts = [
        study.report and study.report.text for study in read_source(tmp_path, reports=tmp_path / "words.csv").studies
    ]
    assert texts == ["First.", None, "Other."]
    with pytest.raises(ValueError, match="does not exist"):
        read_source(tmp_path, reports=tmp_path / "none")


def test_reports_in_other_columns_and_another_encoding_are_joined_and_the_rest_is_listed(tmp_path):
    (tmp_path / "studies.csv").write_text(TABLE)
    words = "Fall;Befund;Urteil\na;x;y\nb;Größer.;Läsion.\nc;Fremd.;Niemand.\n"
    (tmp_path / "words.csv").write_bytes(words.encode("cp1254"))
    columns = {"Fall": "subject", "Urteil": "impression"}
    sources = read_source(tmp_path, reports=tmp_path / "words.csv", report_columns=columns, report_encoding="cp1254")
    texts = [study.report and study.report.text for study in sources.studies]
    assert texts == [None, None, "FINDINGS: Größer.\nIMPRESSION: Läsion."]
    assert [row.reason for row in sources.rejected] == ["report-ambiguous", "report-unmatched"]


def test_a_table_whose_reports_and_report_table_differ_keeps_neither(tmp_path):
    (tmp_path / "studies.csv").write_text("subject,path,report\na,a_t1w.nii,Normal.\nb,b_t1w.nii,Normal.\n")
    (tmp_path / "words.csv").write_text("subject,report\na,A mass.\nb,Normal.\n")
    sources = read_source(tmp_path, reports=tmp_path / "words.csv")
    assert [study.report and study.report.text for study in sources.studies] == [None, "Normal."]
    assert [(row.subject, row.reason) for row in sources.rejected] == [("a", "report-conflict")]


def test_columns_are_mapped_in_a_table_of_studies_and_nowhere_else(tmp_path):
    path = tmp_path / "cases.csv"
    path.write_text("pid,img\na,a_t1w.nii\n")
    (study,) = read_source(path, columns={"pid": "subject", "img": "path"}).studies
    assert study.subject == "a" and study.series[0].sequence == "t1w"
    (tmp_path / "bids" / "sub-01" / "anat").mkdir(parents=True)
    with pytest.raises(ValueError, match="no table of studies"):
        read_source(tmp_path / "bids", columns={"pid": "subject"})


DICOM = {"patient": "CANARY-1", "study": "1.2.826.0.1.1", "header": {"AccessionNumber": "CANARY-A1"}}


def test_raw_dicom_is_read_with_pseudonyms_only_and_its_reports_are_joined_by_accession(tmp_path):
    raw = tmp_path / "raw"
    voxels = np.random.default_rng(0).integers(0, 900, (16, 16, 8)).astype(np.int16)
    write_series(raw, voxels, np.diag([1.0, 1.0, 2.0, 1.0]), modality="CT", **DICOM)
    words = tmp_path / "words.csv"
    words.write_text("accession,report\nCANARY-A1,Normal chest.\nCANARY-A9,Somebody else.\n")
    with pytest.raises(ValueError, match=r"names people: give a key file.*--key"):
        read_source(raw, reports=words)
    sources = read_source(raw, reports=words, pseudonyms=Pseudonyms(b"k" * 32))
    (study,) = sources.studies
    assert study.report is not None and study.report.text == "Normal chest."
    assert "report-unmatched" in [row.reason for row in sources.rejected]
    assert "CANARY" not in "".join(row.model_dump_json() for row in sources.rejected) + study.subject + study.study


def test_without_the_dicom_extra_the_error_names_it(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"for no DICOM: that needs pip install 'tomoglot\[dicom\]'"):
        read_source(tmp_path)
