"""BIDS folders: sessions are studies, suffixes are sequences."""

import pytest

from tomoglot.studies.bids import read_bids
from tomoglot.studies.source import read_source


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_sessions_are_studies_and_suffixes_are_sequences(tmp_path):
    touch(
        tmp_path,
        "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz",
        "sub-01/ses-a/anat/sub-01_ses-a_ce-gd_T1w.nii.gz",
        "sub-01/ses-a/anat/sub-01_ses-a_FLAIR.nii",
        "sub-01/ses-a/sub-01_ses-a_mask.nii.gz",
        "sub-01/ses-b/anat/sub-01_ses-b_T2starw.nii.gz",
        "sub-02/anat/sub-02_PDw.nii.gz",
        "sub-02/dwi/sub-02_dwi.nii.gz",
    )
    sources = read_source(tmp_path)
    assert not sources.rejected
    found = [(study.subject, study.study, {series.sequence for series in study.series}) for study in sources.studies]
    assert found == [
        ("sub-01", "ses-a", {"t1w", "t1c", "flair"}),
        ("sub-01", "ses-b", {"t2s"}),
        ("sub-02", "sub-02", {"pd", "dwi"}),
    ]
    assert sources.studies[0].mask is not None and sources.studies[1].mask is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("sub-01_run-2_T1w.nii.gz", "duplicate-series"),
        ("sub-01_what.nii.gz", "unknown-suffix"),
        ("my image (1).nii.gz", "not-bids"),
        ("sub-01_part-phase_T2starw.nii.gz", "not-magnitude"),
    ],
)
def test_a_file_that_cannot_be_placed_is_a_row_and_the_others_stay(name, reason, tmp_path):
    touch(tmp_path, "sub-01/anat/sub-01_run-1_T1w.nii.gz", f"sub-01/anat/{name}")
    sources = read_bids(tmp_path)
    assert [(row.reason, row.file, row.subject) for row in sources.rejected] == [(reason, name, "sub-01")]
    assert [series.path.name for series in sources.studies[0].series] == ["sub-01_run-1_T1w.nii.gz"]


def test_participants_give_split_and_labels(tmp_path):
    touch(tmp_path, "sub-01/anat/sub-01_T1w.nii.gz", "sub-02/anat/sub-02_T1w.nii.gz")
    (tmp_path / "participants.tsv").write_text("participant_id\tage\tsplit\tlabel:mass\nsub-01\t40\ttest\t1\n")
    first, second = read_bids(tmp_path).studies
    assert (first.split, first.labels, second.split, second.labels) == ("test", {"mass": 1.0}, None, {})


def test_a_folder_without_subjects_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no sub-\* folder"):
        read_bids(tmp_path)
