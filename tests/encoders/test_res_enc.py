"""The residual encoder keeps the contract, works with both decoders and BrainMVP, and has nnU-Net's sizes."""

import pytest
import torch
from torch.nn import functional as F

from tomoglot.encoders import res_enc
from tomoglot.encoders.decoder import BottleneckDecoder
from tomoglot.encoders.skip_decoder import SkipDecoder
from tomoglot.encoders.vision import VisionEncoder
from tomoglot.encoders.weights import load_weights
from tomoglot.recipes.brainmvp import tiny as brainmvp_tiny

FULL = {"first_stride": 1, "stem": True}


def build(**changes):
    torch.manual_seed(0)
    return res_enc.tiny().but(**changes).build()


@pytest.mark.parametrize("changes", [{}, FULL, {"stem": True}, {"first_stride": 1}, {"norm_groups": None}])
@pytest.mark.parametrize("shape", [(24, 16, 32), (17, 22, 19)])
def test_the_pyramid_has_the_promised_widths_and_strides(changes, shape):
    encoder = build(**changes)
    features = encoder(torch.randn(2, 1, *shape))
    for level, width, stride in zip(features.pyramid, encoder.widths, encoder.strides, strict=True):
        assert level.shape == (2, width, *(-(-edge // stride) for edge in shape))
    assert encoder.strides == ((1, 2, 4) if changes.get("first_stride") == 1 else (2, 4, 8))
    assert features.tokens.shape == (2, features.pyramid[-1][0, 0].numel(), encoder.embedding)
    torch.testing.assert_close(features.pooled, features.pyramid[-1].mean((2, 3, 4)))


def test_a_block_is_its_definition():
    """Two normed convolutions beside a mean of 2^3 and a normed 1^3 convolution."""
    block = res_enc._Residual(3, 8, stride=2, groups=None)
    features = torch.randn(2, 3, 8, 6, 4)

    def normed(x):
        return (x - x.mean((2, 3, 4), keepdim=True)) / (x.var((2, 3, 4), correction=0, keepdim=True) + 1e-5).sqrt()

    inner = F.leaky_relu(normed(F.conv3d(features, block.conv1[0].weight, stride=2, padding=1)), 0.01)
    beside = normed(F.conv3d(F.avg_pool3d(features, 2), block.skip[0].weight))
    slow = F.leaky_relu(normed(F.conv3d(inner, block.conv2[0].weight, padding=1)) + beside, 0.01)
    torch.testing.assert_close(block(features), slow, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("changes", [{}, FULL])
def test_both_decoders_bring_voxels_back_and_every_parameter_learns(changes):
    encoder = build(**changes)
    volumes = torch.randn(2, 1, 17, 16, 20)
    features = encoder(volumes)
    rebuilt = BottleneckDecoder(encoder.widths, encoder.strides)(features, (17, 16, 20))
    assert rebuilt.shape == volumes.shape
    logits = SkipDecoder(1, encoder.widths, encoder.strides, out_channels=3)(features, volumes)
    assert logits[0].shape == (2, 3, 17, 16, 20)
    sum(part.square().sum() for part in (rebuilt, *logits, features.pooled)).backward()
    silent = [name for name, value in encoder.named_parameters() if value.grad is None or not value.grad.any()]
    assert silent == []


@pytest.mark.parametrize("changes", [{}, FULL])
def test_weights_of_one_channel_fill_an_encoder_of_four_and_answer_alike(changes):
    one, four = build(norm_groups=8, **changes).eval(), build(in_channels=4, **changes).eval()
    coverage = load_weights(four, one.state_dict(), adapt="mean")
    assert coverage.share == 1.0
    assert len(coverage.adapted) == (1 if changes else 2)  # without a stem the first block reads the input twice
    volume = torch.randn(1, 1, 16, 16, 16)
    torch.testing.assert_close(four(volume.expand(-1, 4, -1, -1, -1)).pooled, one(volume).pooled, atol=1e-5, rtol=1e-4)


def test_brainmvp_is_built_round_it():
    model = brainmvp_tiny().but(vision=res_enc.tiny()).build(("t1w", "flair"))
    features = model.vision(torch.randn(2, 1, 40, 40, 40))
    assert model.decoder(features, (40, 40, 40)).shape == (2, 1, 40, 40, 40)
    assert VisionEncoder.Config.named("res_enc").build().in_channels == 1


def test_the_sizes_of_nnunets_presets():
    with torch.device("meta"):
        encoder = res_enc.m().build()
    convolutions = [part for part in encoder.stages.modules() if isinstance(part, torch.nn.Conv3d)]
    assert sum(part.kernel_size == (3, 3, 3) for part in convolutions) == 2 * 26
    assert encoder.strides == (1, 2, 4, 8, 16, 32) and encoder.widths == (32, 64, 128, 256, 320, 320)
    assert res_enc.l() == res_enc.m()


def test_impossible_sizes_are_refused():
    for changes, words in [
        ({"blocks": (1, 1)}, "give one each"),
        ({"blocks": (0, 1, 1)}, "takes its stride"),
        ({"norm_groups": 5}, "multiples of norm_groups"),
    ]:
        with pytest.raises(ValueError, match=words):
            res_enc.tiny().but(**changes)
    with pytest.raises(ValueError, match="reads 1 channels"):
        build()(torch.randn(1, 2, 16, 16, 16))
    with pytest.raises(ValueError, match="instance norm makes it zero"):
        build(norm_groups=None)(torch.randn(1, 1, 8, 8, 8))
