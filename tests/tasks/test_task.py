"""Tasks are found by their files; settings that differ give results file names of their own."""

import inspect
from pathlib import Path

import pytest

from tomoglot.config import Settings
from tomoglot.tasks import task as tasks
from tomoglot.tasks.task import TaskResult, load, names, side_of, variant_of


class Config(Settings):
    split: str = "test"
    controls: bool = True
    seed: int = 0
    label_fraction: float = 1.0
    widths: tuple[int, ...] = (1, 2)


@pytest.mark.parametrize("name", names())
def test_every_task_keeps_the_contract(name: str) -> None:
    task = load(name)
    assert name in names(task.VERB)
    config = task.Config()
    assert (config.split, config.controls, config.seed) == ("test", True, 0)
    assert type(config).from_json(config.to_json()) == config
    arguments = inspect.signature(task.score).parameters
    assert list(arguments) == ["model", "store", "config", "out", "progress"]
    assert all(arguments[key].default is None for key in ("out", "progress"))
    assert (task.score.__doc__ or "").strip() and (task.Config.__doc__ or "").strip()
    if task.VERB == "transfer":
        assert config.label_fraction == 1.0
        with pytest.raises(ValueError, match="label_fraction"):
            config.but(label_fraction=0.0)


def test_tasks_are_the_files_with_a_verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "zero_shot" in names("evaluate") and "abnormality" in names("transfer")
    assert "metrics" not in names() and "task" not in names()
    # Tomorrow's task is found without being announced, and without running any file.
    (tmp_path / "tomorrow.py").write_text('VERB = "transfer"\nraise RuntimeError\n')
    monkeypatch.setattr(tasks.tomoglot.tasks, "__path__", [str(tmp_path)])
    assert names() == names("transfer") == ["tomorrow"] and names("evaluate") == []


def test_an_unknown_task_names_the_nearest_and_one_of_the_other_verb_says_so() -> None:
    with pytest.raises(ValueError, match=r"did you mean `tomoglot evaluate zero_shot`\?.*knows .*zero_shot"):
        load("zero-shot", verb="evaluate")
    with pytest.raises(ValueError, match=r"did you mean `tomoglot transfer abnormality`"):
        load("abnormalty", verb="evaluate")
    with pytest.raises(ValueError, match=r"zero_shot is a task of `tomoglot evaluate`.*knows .*abnormality"):
        load("zero_shot", verb="transfer")


def test_two_settings_never_share_a_file(tmp_path: Path) -> None:
    result = TaskResult(task="Sort of-probe", split="test", subjects=0, studies=0)
    configs = [
        Config(),
        Config(label_fraction=0.1),
        Config(label_fraction=0.01),
        Config(split="val"),
        Config(seed=1),
        Config(controls=False),
        Config(widths=(2, 2)),
        Config(widths=(3, 2), label_fraction=0.1),
        Config(split="x" * 200),
        Config(split="y" * 200),
    ]
    saved = [result.under(config).save(tmp_path) for config in configs]
    assert len(set(saved)) == len(configs) and len(list(tmp_path.glob("*.predictions.jsonl"))) == len(configs)
    assert saved[0].name == "sort_of-probe.json"
    assert saved[1].name == "sort_of-probe-label_fraction_0.1.json"
    assert saved[5].name == "sort_of-probe-no_controls.json"
    assert TaskResult.load(saved[1]).settings["label_fraction"] == 0.1
    assert variant_of(Config(split="probe"), task="sort-probe") == "" != variant_of(Config(split="probe"))
    assert variant_of(Config()) == "" and result.under(Config(seed=1)).under(Config()).file_stem == "sort_of-probe"


def test_all_means_every_study() -> None:
    assert side_of("all") is None and side_of("val") == "val"
