"""The reader that fits is found; what was looked for is said where none does."""

import pytest

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
    with pytest.raises(ValueError, match=r"studies\.csv.*BIDS.*open_ms") as caught:
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
    assert [(row.reason, row.file) for row in sources.rejected] == [("report-unreadable", "broken.txt")]


def test_reports_of_a_table_are_joined_by_subject_and_study(tmp_path):
    (tmp_path / "studies.csv").write_text(TABLE)
    (tmp_path / "words.csv").write_text("subject,study,report\na,1,First.\nb,1,Other.\n")
    texts = [
        study.report and study.report.text for study in read_source(tmp_path, reports=tmp_path / "words.csv").studies
    ]
    assert texts == ["First.", None, "Other."]
    with pytest.raises(ValueError, match="does not exist"):
        read_source(tmp_path, reports=tmp_path / "none")
