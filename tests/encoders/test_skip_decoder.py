"""The decoder with skips: sizes that no power of two divides, and that nothing of the pyramid is left unread."""

import pytest
import torch

from tomoglot.encoders.skip_decoder import SkipDecoder
from tomoglot.encoders.vision import VisionEncoder, VisionFeatures

NARROW = {
    "plain_conv:tiny": {"widths": (8, 16, 24, 32), "blocks": (0, 0, 0, 0)},
    "uniformer:tiny": {},
}
# Encoders whose maps the decoder has to reach from afar.
PATCHES = {name: {"width": 24, "depth": 1, "heads": 2} for name in ("vit:tiny", "vit:small")}


def pair(name: str, *, channels: int = 3, **options):
    torch.manual_seed(0)
    encoder = VisionEncoder.Config.named(name).but(in_channels=channels, **(NARROW | PATCHES)[name]).build()
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


@pytest.mark.parametrize(("name", "sizes"), [("vit:tiny", (16, 8, 4)), ("vit:small", (16, 8, 4))])
def test_one_map_of_patches_is_doubled_until_the_input_and_supervised_on_the_way(name, sizes):
    encoder, decoder = pair(name)
    volumes = torch.randn(1, 3, 16, 16, 16)
    logits = decoder(encoder(volumes), volumes)
    assert [tuple(output.shape[2:]) for output in logits] == [(size,) * 3 for size in sizes]
    sum(output.square().sum() for output in logits).backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in decoder.parameters())
    # At full size a convolution of all the transformer's channels would cost more than the transformer.
    assert decoder.stages[-1].mix[0].out_channels == 8


def test_an_image_stays_one_voxel_thick():
    torch.manual_seed(0)
    encoder = VisionEncoder.Config.named("vit:tiny").but(patch=(16, 16, 1), width=24, depth=1, heads=2).build()
    decoder = SkipDecoder(1, encoder.widths, encoder.strides, out_channels=1)
    images = torch.randn(1, 1, 32, 48, 1)
    sizes = [tuple(output.shape[2:]) for output in decoder(encoder(images), images)]
    assert sizes == [(32, 48, 1), (16, 24, 1), (8, 12, 1)]


def test_a_map_fourfold_coarser_is_reached_in_one_stage():
    assert len(SkipDecoder(1, (16, 32), (4, 16), out_channels=1, deep_supervision=1).stages) == 2
    assert len(SkipDecoder(1, (16, 32), (4, 32), out_channels=1).stages) == 4


@pytest.mark.parametrize(("stride", "strides"), [(16, [8, 4, 2, 1]), (12, [6, 3, 1]), (14, [7, 3, 1])])
def test_full_size_is_reached_once_from_a_patch_of_any_edge(stride, strides):
    """A second stage at full size would cost as much as all the others together."""
    decoder = SkipDecoder(1, (64,), (stride,), out_channels=1)
    assert [stage.stride for stage in decoder.stages] == strides
    volumes = torch.randn(1, 1, 2 * stride, 2 * stride, 2 * stride)
    found = VisionFeatures((torch.randn(1, 64, 2, 2, 2),), torch.zeros(1, 8, 64), torch.zeros(1, 64))
    assert decoder(found, volumes)[0].shape == (1, 1, *[2 * stride] * 3)


def test_a_pyramid_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="strides rising"):
        SkipDecoder(1, (8, 16), (4, 2), out_channels=1)
    with pytest.raises(ValueError, match="0 to 1 coarser"):
        SkipDecoder(1, (8, 16), (2, 4), out_channels=1, deep_supervision=2)
