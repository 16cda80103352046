"""A folder holds one simulated cohort: the same call finishes it, and another is refused before it is simulated."""

import pytest

from tomoglot.studies.phantom import write_cohort
from tomoglot.studies.phantom.files import claim

ASKED = {"subjects": 2, "seed": 3, "spacing_mm": 8.0}


def test_the_same_call_finishes_a_cohort_and_another_is_refused(tmp_path):
    table = write_cohort(tmp_path, **ASKED)
    written = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    # Stopped before its table, which is written last.
    table.unlink()
    write_cohort(tmp_path, **ASKED)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == written
    with pytest.raises(
        ValueError, match=r"holds another cohort \(seed was 3, now 4\); choose an empty or a new folder"
    ):
        write_cohort(tmp_path, **{**ASKED, "seed": 4})
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == written


def test_a_folder_of_other_files_is_refused(tmp_path):
    (tmp_path / "studies.csv").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no simulated cohort"):
        write_cohort(tmp_path, **ASKED)
    assert [path.name for path in tmp_path.iterdir()] == ["studies.csv"]


def test_a_cohort_of_which_nothing_was_written_does_not_stand_in_the_way(tmp_path):
    with pytest.raises(ValueError, match="no kind of simulated study"):
        write_cohort(tmp_path, **ASKED, only="nonsense")
    claim(tmp_path, {"seed": 1})
    claim(tmp_path, {"seed": 2})
    (tmp_path / "reports").mkdir()
    with pytest.raises(ValueError, match="seed was 2, now 1"):
        claim(tmp_path, {"seed": 1})
