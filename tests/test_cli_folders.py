"""Where the command line writes: what cannot be written, or would be mixed, is refused before anything is loaded."""

import errno
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tomoglot import cli
from tomoglot.cli import cohorts, models
from tomoglot.store.catalogue import StudyRow
from tomoglot.store.plan import Plan
from tomoglot.store.reader import Store
from tomoglot.store.writer import IngestSummary
from tomoglot.studies.atomic import replacing, write_bytes


@pytest.fixture
def refused(monkeypatch, capsys):
    """Run the command line in this process; it must say one line and leave with 2."""

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["tomoglot", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        said = capsys.readouterr().err
        assert left.value.code == 2, said
        assert said.startswith("error: ") and said.count("\n") == 1, said
        return said

    return run


@pytest.mark.parametrize(
    "verb",
    [
        ("phantom", "brain"),
        ("demo",),
        ("ingest", "absent"),
        ("curate", "absent"),
        ("pretrain", "medmap:tiny"),
        ("import", "absent", "--store", "s"),
        ("evaluate", "zero_shot", "--from", "r", "--store", "s"),
        ("transfer", "abnormality", "--from", "r", "--store", "s"),
        ("compare", "zero_shot", "--store", "s", "--run", "a=r"),
        ("bench", "scaling", "medmap:tiny"),
    ],
    ids=lambda verb: verb[0],
)
@pytest.mark.parametrize("below", [(), ("below",)], ids=["itself", "below"])
def test_a_file_is_no_place_to_write_results(refused, tmp_path, verb, below):
    (tmp_path / "afile").write_text("mine")
    assert "afile is a file; --out wants a folder" in refused(*verb, "--out", tmp_path.joinpath("afile", *below))


def test_an_ingest_among_other_files_is_refused_before_the_source_is_read(refused, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    said = refused("ingest", tmp_path / "absent", "--out", tmp_path / "mine")
    assert "mine is not empty and holds no store (no store.json); choose an empty or a new folder" in said


def test_a_phantom_among_other_files_is_refused_before_it_is_simulated(refused, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    assert "is not empty" in refused("phantom", "brain", "--out", tmp_path, "--subjects", "1000000")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--field", "0"), "at least one voxel"),
        (("--field", "64,-1,64"), "at least one voxel"),
        (("--spacing-mm", "0"), "0.05 to 100 mm"),
        (("--spacing-mm", "-2"), "0.05 to 100 mm"),
        (("--spacing-mm", "2,2,1000"), "0.05 to 100 mm"),
        (("--spacing-mm", "nan"), "0.05 to 100 mm"),
        (("--field", "100000"), "GiB are free"),
    ],
)
def test_sizes_that_no_study_has_are_refused_before_the_source_is_read(refused, tmp_path, options, says):
    assert says in refused("ingest", tmp_path / "absent", "--out", tmp_path / "store", *options)
    assert not (tmp_path / "store").exists()


def test_the_plan_of_a_store_is_taken_from_its_folder(tmp_path):
    plan = Plan(spacing_mm=(1.5, 1.5, 1.5), field_voxels=(96, 96, 64))
    write_bytes(tmp_path / "plan.json", plan.to_json().encode())
    assert cohorts._plan(None, None, None, tmp_path) == plan


@pytest.mark.parametrize(
    ("done", "says"),
    [
        ({"accepted": 17, "skipped": 0, "stored": 41}, "17 studies written, 41 in the store (24 from another source);"),
        ({"accepted": 17, "skipped": 0, "stored": 17}, "17 studies written, 17 in the store;"),
        (
            {"accepted": 17, "skipped": 5, "stored": 41},
            "12 studies written, 41 in the store (5 from before, 24 from another source);",
        ),
    ],
)
def test_an_ingest_tells_what_it_wrote_and_what_the_store_holds(capsys, done, says):
    cohorts._tell(IngestSummary(rejected=0, digest="", **done), Path("source"), Path("store"))
    assert capsys.readouterr().out.startswith(says)


def test_a_picture_goes_to_a_png_file_and_nowhere_else(refused, tmp_path):
    assert "is a folder; --png wants the name of a file" in refused("inspect", "absent", "--png", tmp_path)
    assert "ends with .png" in refused("inspect", "absent", "--png", tmp_path / "picture.jpg")


def test_what_the_system_refuses_is_one_line_with_the_name_of_the_file(refused, monkeypatch, tmp_path):
    def full(path: Path) -> object:
        with replacing(tmp_path / "report.html"):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Store, "open", full)
    assert refused("inspect", "s") == "error: report.html: No space left on device\n"

    def forbidden(path: Path) -> object:
        raise PermissionError(errno.EACCES, "Permission denied", "/someone/picture.png")

    monkeypatch.setattr(Store, "open", forbidden)
    assert refused("inspect", "s") == "error: picture.png: Permission denied\n"


def test_a_file_that_takes_a_folders_name_says_the_name_that_was_asked_for(tmp_path):
    (tmp_path / "picture.png").mkdir()
    with pytest.raises(OSError) as error:
        write_bytes(tmp_path / "picture.png", b"")
    assert cli._in_one_line(error.value) == "picture.png: Is a directory"
    with pytest.raises(OSError) as error:
        write_bytes(Path("/proc/picture.png"), b"")
    assert cli._in_one_line(error.value).startswith("picture.png: ")


def test_a_recipe_and_a_preset_that_are_not_there_are_called_so(refused, tmp_path):
    out = ("--out", tmp_path / "r")
    assert "medmp:tiny: there is no recipe 'medmp'; did you mean 'medmap'?" in refused("pretrain", "medmp:tiny", *out)
    assert "there is no preset 'tinny'; did you mean 'tiny'?" in refused("pretrain", "medmap:tinny", *out)


def test_a_split_that_is_not_there_is_refused_with_those_there_are(monkeypatch, tmp_path):
    rows = tuple(StudyRow.model_construct(split=name, sequences=(), labels={}) for name in ("train", "test", "test"))
    monkeypatch.setattr(Store, "open", lambda path: Store(path, Plan(), rows, digests=("", "")))
    with pytest.raises(ValueError, match="this store has no split 'tset'; it has test, train"):
        models._opened(tmp_path, SimpleNamespace(split="tset"))
    for split in ("test", "all"):
        assert models._opened(tmp_path, SimpleNamespace(split=split)).rows == rows
