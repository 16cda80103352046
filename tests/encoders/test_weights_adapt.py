"""A first convolution for another number of input channels: what is kept, and what the account says."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tomoglot.encoders import plain_conv, uniformer
from tomoglot.encoders.weights import adapt_input, load_weights


class Net(nn.Module):
    """A convolution over the input and one behind it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.in_channels = channels
        self.first = nn.Conv3d(channels, 4, 3)
        self.second = nn.Conv3d(4, 2, 1)


def seeded(channels: int, seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net(channels)


def respond(weight: torch.Tensor, bias: torch.Tensor, volume: torch.Tensor) -> torch.Tensor:
    return F.conv3d(volume, weight, bias)


def first_in_words(old: torch.Tensor, channels: int, how: str) -> torch.Tensor:
    """The first convolution's weights, one new channel at a time."""
    new = torch.zeros(old.shape[0], channels, *old.shape[2:])
    for channel in range(channels):
        if how == "mean":
            for other in range(old.shape[1]):
                new[:, channel] += old[:, other] / channels
        else:
            new[:, channel] = old[:, channel % old.shape[1]]
    return new


@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 1), (2, 3), (3, 2)])
@pytest.mark.parametrize("how", ["mean", "repeat"])
def test_channels_are_adapted_as_defined(before, after, how):
    old = seeded(before).state_dict()
    new = adapt_input(old, seeded(after), how=how)
    torch.testing.assert_close(new["first.weight"], first_in_words(old["first.weight"], after, how))
    assert all(new[name] is old[name] for name in old if name != "first.weight")


@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 1), (3, 2)])
def test_the_mean_answers_equal_channels_as_before_and_repeating_answers_louder(before, after):
    old, volume = seeded(before).state_dict(), torch.randn(1, 1, 5, 5, 5)
    silent = torch.zeros(4)
    was = respond(old["first.weight"], silent, volume.expand(1, before, 5, 5, 5))
    now = {
        how: respond(adapt_input(old, seeded(after), how=how)["first.weight"], silent, volume.expand(1, after, 5, 5, 5))
        for how in ("mean", "repeat")
    }
    torch.testing.assert_close(now["mean"], was)
    if after % before == 0:
        torch.testing.assert_close(now["repeat"], was * after / before)


def test_a_source_a_sequence_answers_as_the_mean_of_the_sources():
    sources = [seeded(1, seed).state_dict() for seed in range(3)]
    new = adapt_input(sources[0], seeded(3), how="sequence", sources=sources)
    volume = torch.randn(2, 3, 5, 5, 5)
    each = [
        respond(source["first.weight"], source["first.bias"], volume[:, channel : channel + 1])
        for channel, source in enumerate(sources)
    ]
    torch.testing.assert_close(
        respond(new["first.weight"], new["first.bias"], volume), torch.stack(each).mean(0), atol=1e-5, rtol=1e-5
    )
    assert new["second.weight"] is sources[0]["second.weight"]
    same = adapt_input(sources[0], seeded(3), how="sequence", sources=[sources[0]] * 3)
    torch.testing.assert_close(same["first.weight"], adapt_input(sources[0], seeded(3))["first.weight"])


@pytest.mark.parametrize(
    ("how", "sources", "said"),
    [
        ("sequence", 0, "got 0 sources"),
        ("sequence", 2, "reads 3 channels and 2 sources"),
        ("mean", 3, "only 'sequence' takes them"),
    ],
)
def test_the_wrong_number_of_sources_is_refused(how, sources, said):
    old = seeded(1).state_dict()
    with pytest.raises(ValueError, match=said):
        adapt_input(old, seeded(3), how=how, sources=[old] * sources)


def test_a_source_of_more_channels_or_without_the_layer_is_refused():
    old = seeded(1).state_dict()
    with pytest.raises(ValueError, match="must read one channel"):
        adapt_input(old, seeded(3), how="sequence", sources=[old, old, seeded(2).state_dict()])
    with pytest.raises(ValueError, match=r"1 of 3 sources hold no first\.weight"):
        adapt_input(old, seeded(3), how="sequence", sources=[old, old, {}])


def test_a_layer_behind_the_first_is_never_averaged():
    wide = plain_conv.PlainConv.Config(widths=(16, 24), blocks=(0, 0), pooling="mean")
    other = wide.but(widths=(32, 24), in_channels=4)
    state = wide.build().state_dict()
    adapted = adapt_input(state, other.build())
    # The second stage differs in its input channels alone (16 and 32), yet it does not read the input.
    assert all(adapted[name] is state[name] for name in state)


@pytest.mark.parametrize("config", [plain_conv.tiny(), uniformer.tiny()])
def test_an_encoder_of_one_channel_becomes_one_of_four_and_the_account_says_so(config):
    torch.manual_seed(0)
    old, new = config.build().eval(), config.but(in_channels=4).build().eval()
    tensors = {f"encoder.{name}": value for name, value in old.state_dict().items()}
    with pytest.raises(ValueError, match=r"nothing was loaded.*other shape: 1"):
        load_weights(new, tensors, strip="encoder.", min_share=1.0)
    coverage = load_weights(new, tensors, strip="encoder.", min_share=1.0, adapt="mean")
    assert len(coverage.adapted) == 1 and coverage.share == 1.0
    assert len(coverage.matched) == len(tensors) - 1
    assert (coverage.missing, coverage.unexpected, coverage.reshaped) == ((), (), ())
    name, theirs, ours = coverage.adapted[0]
    assert name not in coverage.matched and theirs[1] == 1 and ours[1] == 4
    assert "and 1 adapted (100.0%)" in coverage.describe() and name in coverage.describe()
    volume = torch.randn(2, 1, 32, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            new(volume.expand(2, 4, 32, 32, 32)).pooled, old(volume).pooled, atol=1e-4, rtol=1e-4
        )
