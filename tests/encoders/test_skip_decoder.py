"""The decoder with skips: sizes that no power of two divides, and that nothing of the pyramid is left unread."""

import pytest
import torch

from tomoglot.encoders.skip_decoder import SkipDecoder
from tomoglot.encoders.vision import VisionEncoder, VisionFeatures

NARROW = {
    "plain_conv:tiny": {"widths": (8, 16, 24, 32), "blocks": (0, 0, 0, 0)},
    "uniformer:tiny": {},
}


def pair(name: str, *, channels: int = 3, **options):
    torch.manual_seed(0)
    encoder = VisionEncoder.Config.named(name).but(in_channels=channels, **NARROW[name]).build()
    return encoder, SkipDecoder(channels, encoder.widths, encoder.strides, out_channels=2, **options)


@pytest.mark.parametrize("name", NARROW)
@pytest.mark.parametrize("shape", [(16, 16, 16), (17, 22, 19)])
def test_logits_have_the_size_of_the_input_and_then_of_the_finest_maps(name, shape):
    encoder, decoder = pair(name)
    volumes = torch.randn(2, 3, *shape)
    features = encoder(volumes)
    logits = decoder(features, volumes)
    sizes = [shape, *(tuple(level.shape[2:]) for level in features.pyramid[:2])]
    assert [tuple(output.shape) for output in logits] == [(2, 2, *size) for size in sizes]


def test_every_map_and_the_input_reach_the_finest_logits():
    encoder, decoder = pair("plain_conv:tiny", deep_supervision=0)
    volumes = torch.randn(1, 3, 16, 16, 16, requires_grad=True)
    maps = tuple(level.detach().requires_grad_() for level in encoder(volumes).pyramid)
    nothing = torch.zeros(1, 1, 1), torch.zeros(1, 1)
    (logits,) = decoder(VisionFeatures(maps, *nothing), volumes)
    logits.square().sum().backward()
    assert all(level.grad.abs().sum() > 0 for level in (*maps, volumes))


def test_every_weight_is_trained_by_the_outputs_together():
    encoder, decoder = pair("plain_conv:tiny")
    volumes = torch.randn(1, 3, 16, 16, 16)
    sum(output.square().sum() for output in decoder(encoder(volumes), volumes)).backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in decoder.parameters())


def test_a_pyramid_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="strides rising"):
        SkipDecoder(1, (8, 16), (4, 2), out_channels=1)
    with pytest.raises(ValueError, match="0 to 1 coarser"):
        SkipDecoder(1, (8, 16), (2, 4), out_channels=1, deep_supervision=2)
