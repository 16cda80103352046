"""The command line: its verbs and options are frozen here, and what a user gives wrong is one line and exit code 2."""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from tomoglot import cli, demo
from tomoglot.config import Settings, three_numbers

SOURCE = {
    *("source", "out", "reports", "layout", "columns", "report_columns", "report_encoding", "key"),
    *("resample_tilt", "subject_from_study", "workers", "scheduler"),
}
VERBS = {
    "demo": {"out", "subjects", "seed"},
    "phantom": {"cohort", "out", "subjects", "seed", "spacing_mm", "only", "sequences", "workers"},
    "ingest": SOURCE | {"plan_of", "spacing_mm", "field", "plan", "seed", "look", "label_findings"},
    "curate": SOURCE,
    "pull": {
        *("origin", "out", "key", "modality", "since", "until", "studies", "accessions"),
        *("credentials", "ca_file", "concurrency"),
    },
    "deidentify": {
        *(
            "source",
            "out",
            "key",
            "retain",
            "drop_dates",
            "look_at_pixels",
            "subject_from_study",
            "deface",
            "mapping",
            "workers",
        ),
    },
    "inspect": {"store", "png"},
    "verify": {"store", "workers"},
    "pretrain": {"recipe", "store", "out", "changes", "config", "resume"},
    "import": {"weights", "store", "out", "encoder", "recipe", "crop"},
    "compare": {"task", "store", "runs", "out", "fractions", "seeds", "measure", "against", "vary", "changes"},
    "evaluate": {"task", "run", "store", "split", "controls", "prompts", "changes", "out"},
    "transfer": {"task", "run", "store", "mode", "split", "label_fraction", "controls", "changes", "out"},
    "report": {"run"},
    "doctor": {"store"},
    "bench scaling": {
        *("recipe", "store", "out", "fractions", "widths", "seeds", "task", "split", "epochs", "group", "changes"),
    },
}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "from tomoglot.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


def commands() -> dict[str, Any]:
    """Every command by name; those of a group, such as `bench`, as ``group command``."""
    found = {}
    for name, command in typer.main.get_command(cli.app).commands.items():  # type: ignore[attr-defined]
        below = getattr(command, "commands", None)
        found |= {name: command} if below is None else {f"{name} {inner}": its for inner, its in below.items()}
    return found


def test_verbs_and_options_change_only_on_purpose() -> None:
    found = {name: {option.name for option in command.params} - {"help"} for name, command in commands().items()}
    assert found == VERBS


def test_every_verb_says_what_it_does() -> None:
    for command in commands().values():
        assert command.help


def test_wrong_input_is_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, says in (
        (("ingest", str(tmp_path / "empty"), "--out", str(tmp_path / "s")), "empty"),
        (("ingest", str(tmp_path / "absent"), "--out", str(tmp_path / "s")), "absent"),
        (("inspect", str(tmp_path / "empty")), "empty"),
        (("pretrain", "medmep:tiny", "--store", "s", "--out", str(tmp_path / "r")), "medmap"),
        (("pretrain", "medmap:tiny", "--set", "schedule.stepz=1", "--out", str(tmp_path / "r")), "steps"),
        (("compare", "segmentation", "--store", "s", "--run", "r", "--out", str(tmp_path)), "NAME=RUN"),
        (("compare", "zero-shot", "--store", "s", "--run", "a=r", "--out", str(tmp_path)), "zero_shot"),
        (("ingest", str(tmp_path), "--label-findings", "knee", "--out", str(tmp_path / "s")), "chest"),
        (("phantom", "knee", "--out", str(tmp_path / "p")), "brain"),
        (("evaluate", "zero-shot", "--from", "r", "--store", "s"), "zero_shot"),
        (("transfer", "zero_shot", "--from", "r", "--store", "s"), "task of `tomoglot evaluate`"),
        (("evaluate", "zero_shot", "--from", "r", "--store", "s", "--set", "drawz=3"), "draws"),
        (("transfer", "abnormality", "--from", "r", "--store", "s", "--label-fraction", "2"), "label_fraction"),
    ):
        # In this process: each of its own would import torch again.
        monkeypatch.setattr(sys, "argv", ["tomoglot", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        told = capsys.readouterr().err
        assert left.value.code == 2, (arguments, told)
        assert told.startswith("error: "), told
        assert says in told
        assert told.count("\n") == 1, told
    assert not (tmp_path / "s").exists() or not any((tmp_path / "s").glob("studies/*"))


def test_options_reach_the_settings_of_a_task_and_one_it_lacks_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from tomoglot import checkpoint
    from tomoglot.store.reader import Store
    from tomoglot.tasks import abnormality
    from tomoglot.tasks.task import TaskResult

    asked: list[tuple[abnormality.Config, Path | None]] = []

    def score(
        model: object, store: object, config: abnormality.Config, *, out: Path | None, progress: object
    ) -> object:
        asked.append((config, out))
        return TaskResult(task=f"abnormality-{config.mode}", split=config.split, subjects=0, studies=0)

    monkeypatch.setattr(abnormality, "score", score)
    trained = SimpleNamespace(card=SimpleNamespace(store_digest="of the run's own store"))
    monkeypatch.setattr(checkpoint, "load_checkpoint", lambda path: trained)
    monkeypatch.setattr(
        Store, "open", lambda path: SimpleNamespace(digest="of the run's own store", select=lambda split: [])
    )
    begin = ["transfer", "abnormality", "--from", str(tmp_path), "--store", "s"]
    assert CliRunner().invoke(cli.app, begin).exit_code == 0
    more = ["--mode", "finetune", "--label-fraction", "0.1", "--split", "holdout", "--no-controls"]
    more += ["--set", "schedule.steps=7"]
    assert CliRunner().invoke(cli.app, [*begin, *more, "--out", str(tmp_path / "o")]).exit_code == 0
    changed = {"mode": "finetune", "label_fraction": 0.1, "split": "holdout", "controls": False, "schedule.steps": 7}
    assert [config for config, _ in asked] == [abnormality.Config(), abnormality.Config().but(**changed)]
    assert asked[0][1] is None and asked[1][1] is not None and asked[1][1].name.startswith("abnormality-mode_finetune")
    assert (tmp_path / "results" / "abnormality-probe.json").exists()
    assert [path.name for path in (tmp_path / "o").glob("abnormality-finetune-*label_fraction_0.1*.json")]

    # Scores on other data never take the place of the run's own.
    monkeypatch.setattr(Store, "open", lambda path: SimpleNamespace(digest="0123456789abcdef", select=lambda split: []))
    assert CliRunner().invoke(cli.app, begin).exit_code == 0
    assert (tmp_path / "results" / "store-0123456789ab" / "abnormality-probe.json").exists()

    class Narrow(Settings):
        split: str = "test"

    monkeypatch.setattr(abnormality, "Config", Narrow)
    refused = CliRunner().invoke(cli.app, [*begin, "--label-fraction", "0.5"])
    assert "no option --label-fraction" in str(refused.exception)


def test_three_numbers_or_one() -> None:
    assert three_numbers("2", float) == (2.0, 2.0, 2.0)
    assert three_numbers("96x112,96", int) == (96, 112, 96)
    done = run("ingest", ".", "--out", "s", "--field", "4,5")
    assert re.search(r"one number or three", done.stderr) or done.returncode == 2


def test_doctor_names_the_versions() -> None:
    done = run("doctor")
    assert done.returncode == 0, done.stdout
    assert "torch" in done.stdout
    assert "devices" in done.stdout


def test_demo_without_options_runs_with_its_own_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`make demo` gives no number of subjects: the default must pass its own check (it once did not)."""
    given: list[demo.DemoConfig] = []
    monkeypatch.setattr(demo, "run_demo", lambda out, config, **_: given.append(config))
    for arguments in ([], ["--subjects", "50", "--seed", "3"]):
        assert CliRunner().invoke(cli.app, ["demo", "--out", str(tmp_path), *arguments]).exit_code == 0
    assert given == [demo.DemoConfig(), demo.DemoConfig(subjects=50, seed=3)]
    assert CliRunner().invoke(cli.app, ["demo", "--out", str(tmp_path), "--subjects", "3"]).exit_code == 2


def test_a_comparison_prints_every_measure_that_was_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tomoglot import checkpoint
    from tomoglot.store.reader import Store
    from tomoglot.tasks import compare
    from tomoglot.tasks.task import Score, TaskResult

    def compared(*given: object, measures: list[str], **options: object) -> TaskResult:
        scores = (
            Score(name="macro", metric=name, arm=arm, value=0.25, low=0.1, high=0.5, subjects=9, prevalence=0.5)
            for name in measures
            for arm in ("mae", "from scratch")
        )
        return TaskResult(task="compare-segmentation", split="test", subjects=9, studies=9, scores=tuple(scores))

    monkeypatch.setattr(compare, "compare_pretraining", compared)
    monkeypatch.setattr(checkpoint, "load_checkpoint", lambda path: None)
    monkeypatch.setattr(Store, "open", lambda path: SimpleNamespace(select=lambda split: []))
    asked = ["compare", "segmentation", "--store", "s", "--run", "mae=r", "--out", str(tmp_path)]
    told = CliRunner().invoke(cli.app, [*asked, "--measure", "dice,nsd"])
    assert told.exit_code == 0, told.output
    assert told.output.count("dice") == 2 and told.output.count("nsd") == 2
