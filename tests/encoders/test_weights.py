"""Loading says what fitted, and refuses too little before it touches the module."""

import pickle
import random

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tomoglot.encoders.weights import load_weights, read_weights


def module() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))


def values(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def test_the_account_names_matched_missing_unexpected_and_reshaped():
    network = module()
    before = values(network)
    tensors = {
        "encoder.0.weight": torch.full((3, 2), 7.0),
        "encoder.0.bias": torch.zeros(5),
        "encoder.1.weight": torch.full((4, 3), 8.0),
        "encoder.extra": torch.zeros(1),
        "1.bias": torch.zeros(4),
    }
    coverage = load_weights(network, tensors, strip="encoder.", min_share=0.5)
    assert coverage.matched == ("0.weight", "1.weight")
    assert coverage.missing == ("1.bias",)
    assert coverage.unexpected == ("encoder.extra", "1.bias")
    assert coverage.reshaped == (("0.bias", (5,), (3,)),)
    assert coverage.share == 0.5
    for said in ("2 of 4", "1.bias", "encoder.extra", "0.bias (file (5,), module (3,))"):
        assert said in coverage.describe()
    after = network.state_dict()
    assert (after["0.weight"] == 7).all() and (after["1.weight"] == 8).all()
    torch.testing.assert_close(after["0.bias"], before["0.bias"])
    torch.testing.assert_close(after["1.bias"], before["1.bias"])


def test_too_small_a_share_is_refused_and_nothing_is_written():
    network = module()
    before = values(network)
    with pytest.raises(ValueError, match=r"75\.0%.*at least 95\.0%.*nothing was loaded.*missing: 1: 1\.bias"):
        load_weights(network, {name: value + 1 for name, value in before.items() if name != "1.bias"})
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, before[name])


def test_a_wrong_prefix_loads_nothing_and_says_so():
    network = module()
    with pytest.raises(ValueError, match=r"0 of 4 .*prefix to strip \(now 'encoder\.'\)"):
        load_weights(network, network.state_dict(), strip="encoder.", min_share=0.1)


def test_long_lists_are_cut_in_words_and_kept_in_the_record():
    network = nn.Linear(1, 1)
    extra = {f"other.{index}": torch.zeros(1) for index in range(20)}
    coverage = load_weights(network, network.state_dict() | extra)
    assert len(coverage.unexpected) == 20
    assert "and 15 more" in coverage.describe()


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"epoch": 3, "state_dict": state}])
def test_a_torch_file_gives_its_tensors(tmp_path, wrap):
    state = module().state_dict()
    torch.save(wrap(state), tmp_path / "weights.pt")
    read = read_weights(tmp_path / "weights.pt")
    assert read.keys() == state.keys()
    for name, value in read.items():
        torch.testing.assert_close(value, state[name])


def test_a_safetensors_file_gives_its_tensors(tmp_path):
    state = module().state_dict()
    save_file(state, tmp_path / "weights.safetensors")
    assert read_weights(tmp_path / "weights.safetensors").keys() == state.keys()


class Hostile:
    ran = False

    def __reduce__(self):
        return (setattr, (Hostile, "ran", True))


def test_a_file_with_code_is_refused_and_the_code_does_not_run(tmp_path):
    (tmp_path / "weights.pt").write_bytes(pickle.dumps({"weight": Hostile()}, protocol=2))
    torch.save({"weight": Hostile()}, tmp_path / "weights2.pt")
    for name in ("weights.pt", "weights2.pt"):
        with pytest.raises(ValueError, match=r"weights2?\.pt: holds more than tensors"):
            read_weights(tmp_path / name)
    assert not Hostile.ran


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
def test_an_absent_or_broken_file_is_named(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name}: there is no such weights file"):
        read_weights(tmp_path / name)
    whole = tmp_path / f"whole_{name}"
    save_file(module().state_dict(), whole) if name.endswith("safetensors") else torch.save(
        module().state_dict(), whole
    )
    (tmp_path / name).write_bytes(whole.read_bytes()[:-40])
    with pytest.raises(ValueError, match=name) as failure:
        read_weights(tmp_path / name)
    assert str(tmp_path) not in str(failure.value)


@pytest.mark.filterwarnings("ignore")
def test_whatever_the_bytes_are_the_file_is_named_and_nothing_else_is_raised(tmp_path):
    """A word, noise, and a good file with some bytes changed, in both of torch's forms."""
    rng, path = random.Random(0), tmp_path / "weights.pt"
    path.write_bytes(b"hello\n")
    with pytest.raises(ValueError, match=r"weights\.pt: cannot be read as weights"):
        read_weights(path)
    wholes = []
    for zipped in (True, False):
        torch.save(module().state_dict(), path, _use_new_zipfile_serialization=zipped)
        wholes.append(path.read_bytes())
    refused = 0
    for number in range(300):
        broken = bytearray([*wholes, rng.randbytes(50)][number % 3])
        for _ in range(4):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        path.write_bytes(broken[: rng.choice([len(broken), rng.randrange(len(broken))])])
        try:
            read_weights(path)
        except ValueError as error:
            refused += str(error).startswith("weights.pt: ")
    assert refused > 150


def test_a_file_without_tensors_is_refused(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="holds no named tensor"):
        read_weights(tmp_path / "weights.pt")
