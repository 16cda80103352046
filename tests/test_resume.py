"""A run that was killed and resumed is the run that was never stopped, bit for bit."""

import json
import random
import signal

import pytest
import torch
from safetensors.torch import load_file

import tiny_run
from tomoglot.checkpoint import latest
from tomoglot.run import Interrupted, pretrain


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tiny_run.write_tiny_store(tmp_path_factory.mktemp("store"))


def lines(run):
    """The numbers of each step, but not how long it took."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in found]


def assert_same_run(one, other):
    assert lines(one) == lines(other)
    left, right = latest(one), latest(other)
    assert left.name == right.name
    for name in ("weights.safetensors", "resume/weights.safetensors"):
        if (left / name).exists() or (right / name).exists():
            assert (left / name).read_bytes() == (right / name).read_bytes(), name
    assert (left / "card.json").read_text() == (right / "card.json").read_text()
    assert json.loads((left / "resume/state.json").read_text()) == json.loads((right / "resume/state.json").read_text())
    optimisers = [torch.load(end / "resume/optimiser.pt", weights_only=True) for end in (left, right)]
    torch.testing.assert_close(optimisers[0], optimisers[1], rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_killed_in_mid_step_goes_on_as_if_it_never_was(store, tmp_path, workers):
    config = tiny_run.tiny_config(**{"loader.workers": workers, "schedule.ema_decay": 0.9})
    # In the second batch of a random step after the first checkpoint: gradients are half accumulated.
    step = random.Random(workers + 11).randint(4, 8)
    killed = tiny_run.run_apart(config, store, tmp_path / "killed", kill_at_call=2 * step)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(lines(tmp_path / "killed")) == step - 1
    assert int(latest(tmp_path / "killed").name) == (step - 1) // 2 * 2
    pretrain(config, store, tmp_path / "killed")
    pretrain(config.but(**{"loader.workers": 0}), store, tmp_path / "whole")
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    assert len(lines(tmp_path / "whole")) == 8


def test_a_run_killed_before_its_first_checkpoint_starts_anew(store, tmp_path):
    config = tiny_run.tiny_config(save_every_steps=100)
    stop_at(config, store, tmp_path / "killed", 3, RuntimeError("as good as killed"))
    assert latest(tmp_path / "killed") is None and len(lines(tmp_path / "killed")) == 3
    pretrain(config, store, tmp_path / "killed")
    pretrain(config, store, tmp_path / "whole")
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


def stop_at(config, store, out, number, error):
    def progress(step, _steps):
        if step.number == number:
            raise error

    with pytest.raises(type(error)):
        pretrain(config, store, out, progress=progress)


def test_every_step_is_a_place_to_stop(store, tmp_path):
    config = tiny_run.tiny_config(save_every_steps=1)
    pretrain(config, store, tmp_path / "whole")
    for step in (2, 3, 5, 8):
        stop_at(config, store, tmp_path / "stopped", step, RuntimeError())
    pretrain(config, store, tmp_path / "stopped")
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def test_a_torn_last_line_is_dropped_on_resume(store, tmp_path):
    config = tiny_run.tiny_config()
    stop_at(config, store, tmp_path / "torn", 5, RuntimeError())
    with (tmp_path / "torn/metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    pretrain(config, store, tmp_path / "torn")
    assert [line["step"] for line in lines(tmp_path / "torn")] == list(range(1, 9))


@pytest.mark.slow
def test_sigterm_ends_with_the_documented_code_after_a_checkpoint(store, tmp_path):
    config = tiny_run.tiny_config(save_every_steps=100)
    stopped = tiny_run.run_apart(config, store, tmp_path / "stopped", terminate_at=3)
    assert stopped.returncode == 143, stopped.stderr
    assert latest(tmp_path / "stopped").name == "00000003"
    pretrain(config, store, tmp_path / "stopped")
    pretrain(config, store, tmp_path / "whole")
    assert lines(tmp_path / "stopped") == lines(tmp_path / "whole")
    weights = [load_file(latest(tmp_path / run) / "weights.safetensors") for run in ("stopped", "whole")]
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)


def test_a_keyboard_interrupt_is_a_checkpoint_too_and_the_handlers_come_back(store, tmp_path):
    before = signal.getsignal(signal.SIGINT)

    def progress(step, _steps):
        if step.number == 3:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted) as caught:
        pretrain(tiny_run.tiny_config(save_every_steps=100), store, tmp_path / "run", progress=progress)
    assert caught.value.code == 130
    assert latest(tmp_path / "run").name == "00000003"
    assert signal.getsignal(signal.SIGINT) is before


def test_how_often_the_rank_is_looked_at_changes_no_weight(store, tmp_path):
    pretrain(tiny_run.tiny_config(log_every_steps=1), store, tmp_path / "often")
    pretrain(tiny_run.tiny_config(log_every_steps=100), store, tmp_path / "seldom")
    often, seldom = (latest(tmp_path / run) / "weights.safetensors" for run in ("often", "seldom"))
    assert often.read_bytes() == seldom.read_bytes()
    assert all("effective_rank" in line for line in lines(tmp_path / "often"))
    assert ["effective_rank" in line for line in lines(tmp_path / "seldom")] == [False] * 7 + [True]
