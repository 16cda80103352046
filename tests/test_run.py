import getpass
import json
import socket

import numpy as np
import pytest
import torch

import tiny_run
from tomoglot.checkpoint import latest, load_checkpoint
from tomoglot.run import RunConfig, pretrain
from tomoglot.store.reader import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tiny_run.write_tiny_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def finished(store, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    pretrain(tiny_run.tiny_config(), store, out)
    return out


def test_the_run_folder_is_the_whole_record(finished, store):
    assert RunConfig.load(finished / "config.json") == tiny_run.tiny_config()
    data, opened = json.loads((finished / "data.json").read_text()), Store.open(store)
    assert data["store_digest"] == opened.digest and data["split_digest"] == opened.split_digest
    assert data["subjects"] == 7 and data["simulated"] is True
    environment = json.loads((finished / "environment.json").read_text())
    assert environment["versions"]["torch"] == torch.__version__
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert [line["step"] for line in lines if "effective_rank" in line] == [3, 6, 8]
    assert sorted(one.name for one in (finished / "checkpoints").iterdir()) == [f"{step:08d}" for step in (2, 4, 6, 8)]


def test_the_card_says_what_the_weights_were_made_from(finished, store):
    card, opened = load_checkpoint(finished).card, Store.open(store)
    assert (card.store_digest, card.split_digest, card.plan) == (opened.digest, opened.split_digest, opened.plan)
    assert card.simulated and card.step == card.steps == 8
    assert all(card.saw(row.subject) for row in opened.rows)


def test_nothing_in_the_record_names_a_host_a_person_or_a_folder(finished, store):
    small = [path for path in finished.rglob("*") if path.suffix in {".json", ".jsonl"}]
    text = "".join(path.read_text() for path in small)
    names = "".join(path.name for path in finished.rglob("*"))
    for private in {socket.gethostname(), str(store), str(finished.parent), f'"{getpass.getuser()}"', "sub-0"}:
        assert private not in text and private not in names


def test_tensorboard_reads_the_same_numbers(finished):
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    (path,) = finished.glob("events.out.tfevents.*")
    seen = {
        (event.step, value.tag): value.tensor.float_val[0]
        for event in EventFileLoader(str(path)).Load()
        for value in event.summary.value
    }
    for line in map(json.loads, (finished / "metrics.jsonl").read_text().splitlines()):
        assert seen[line["step"], "loss"] == pytest.approx(line["loss"], rel=1e-6)
        assert seen[line["step"], "terms/fill"] == pytest.approx(line["terms"]["fill"], rel=1e-6)


def test_a_finished_run_is_returned_as_it_is(finished, store):
    before = (finished / "metrics.jsonl").read_bytes()
    assert pretrain(tiny_run.tiny_config(), store, finished) == latest(finished)
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_a_changed_setting_is_refused_by_its_name(finished, store):
    changed = tiny_run.tiny_config(**{"schedule.learning_rate": 0.5, "seed": 6})
    with pytest.raises(ValueError, match=r"schedule\.learning_rate was 0\.01, now 0\.5; seed was 5, now 6"):
        pretrain(changed, store, finished)
    other_recipe = tiny_run.tiny_config(recipe=tiny_run.TinyRecipe.Config(width=2))
    with pytest.raises(ValueError, match=r"recipe\.width was 3, now 2"):
        pretrain(other_recipe, store, finished)


def test_settings_that_change_no_number_may_change(finished, store):
    pretrain(tiny_run.tiny_config(**{"loader.workers": 1, "save_every_steps": 3}), store, finished)


def test_another_store_is_refused(finished, tmp_path):
    other = tiny_run.write_tiny_store(tmp_path, seed=1)
    with pytest.raises(ValueError, match="store_digest was"):
        pretrain(tiny_run.tiny_config(), other, finished)


def test_a_run_is_not_continued_unless_asked(finished, store):
    with pytest.raises(ValueError, match="already holds a run"):
        pretrain(tiny_run.tiny_config(), store, finished, resume=False)


def test_a_folder_that_holds_something_else_is_left_alone(store, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="not empty and holds no run"):
        pretrain(tiny_run.tiny_config(), store, tmp_path)
    assert [one.name for one in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_loss_that_is_not_finite_leaves_the_last_good_checkpoint(store, tmp_path):
    config = tiny_run.tiny_config(recipe=tiny_run.TinyRecipe.Config(poison_at=0.6))
    keys = {row.key for row in Store.open(store).rows}
    with pytest.raises(FloatingPointError, match="poison=nan") as caught:
        pretrain(config, store, tmp_path / "run")
    named = str(caught.value).split("studies ")[1].split(". The")[0].split(", ")
    assert len(named) == 2 and set(named) <= keys
    assert latest(tmp_path / "run").name == "00000004"
    assert all(value.isfinite().all() for value in load_checkpoint(tmp_path / "run").recipe.state_dict().values())


def test_a_run_that_never_made_a_step_gives_way_to_other_settings(store, tmp_path):
    with pytest.raises(FloatingPointError, match="step 1"):
        pretrain(tiny_run.tiny_config(recipe=tiny_run.TinyRecipe.Config(poison_at=0.0)), store, tmp_path / "run")
    pretrain(tiny_run.tiny_config(), store, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["recipe"]["poison_at"] is None


def test_settings_that_the_store_cannot_give_leave_no_folder_behind(store, tmp_path):
    with pytest.raises(ValueError, match="flare"):
        pretrain(tiny_run.tiny_config(**{"loader.sequences": ("flare",)}), store, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_progress_hears_of_every_step(store, tmp_path):
    heard = []
    pretrain(tiny_run.tiny_config(), store, tmp_path / "run", progress=lambda step, of: heard.append((step.number, of)))
    assert heard == [(number, 8) for number in range(1, 9)]


def test_only_as_many_checkpoints_are_kept_as_asked(store, tmp_path):
    pretrain(tiny_run.tiny_config(keep_last=1), store, tmp_path / "run")
    assert [one.name for one in (tmp_path / "run" / "checkpoints").iterdir()] == ["00000008"]


def test_two_runs_with_one_seed_are_equal_and_with_two_are_not(finished, store, tmp_path):
    torch.rand(3)
    np.random.default_rng(0)
    pretrain(tiny_run.tiny_config(), store, tmp_path / "again")
    pretrain(tiny_run.tiny_config(seed=6), store, tmp_path / "other")
    weights = [(latest(run) / "weights.safetensors").read_bytes() for run in (finished, tmp_path / "again")]
    assert weights[0] == weights[1] != (latest(tmp_path / "other") / "weights.safetensors").read_bytes()


def test_a_preset_brings_the_run_it_is_meant_for():
    config = RunConfig.named("medmap:tiny")
    from tomoglot.recipes import medmap

    assert config.recipe == medmap.tiny()
    assert config.schedule.steps == medmap.PRESETS["tiny"]["schedule.steps"]
    with pytest.raises(ValueError, match="did you mean 'medmap'"):
        RunConfig.named("medmpa:tiny")


@pytest.mark.slow
def test_two_devices_share_one_stream_and_resume(store, tmp_path):
    config = tiny_run.tiny_config(**{"schedule.devices": 2})
    stopped = tiny_run.run_apart(config, store, tmp_path / "two", terminate_at=3)
    assert stopped.returncode == 143, stopped.stderr
    assert latest(tmp_path / "two").name == "00000003"
    resumed = tiny_run.run_apart(config, store, tmp_path / "two")
    assert resumed.returncode == 0, resumed.stderr
    lines = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert {line["samples"] for line in lines} == {8}
    state = json.loads((latest(tmp_path / "two") / "resume" / "state.json").read_text())
    assert state["position"] == 64 and len(state["random"]) == 2
