"""The demo's backbone keeps the vision encoder's contract, and a small lesion is not lost in its pooled vector."""

import pytest
import torch
from beartype import beartype
from beartype.roar import BeartypeCallHintParamViolation
from jaxtyping import jaxtyped

from tomoglot.encoders import plain_conv
from tomoglot.encoders.vision import VisionEncoder


def build(**changes):
    torch.manual_seed(0)
    return plain_conv.tiny().but(**changes).build()


@pytest.mark.parametrize("preset", ["tiny", "small"])
@pytest.mark.parametrize("shape", [(48, 56, 48), (33, 17, 20)])
def test_the_pyramid_has_the_promised_widths_and_strides(preset, shape):
    encoder = VisionEncoder.Config.named(f"plain_conv:{preset}").build()
    features = encoder(torch.randn(2, 1, *shape))
    for level, width, stride in zip(features.pyramid, encoder.widths, encoder.strides, strict=True):
        assert level.shape == (2, width, *(-(-edge // stride) for edge in shape))
    num_tokens = features.pyramid[-1][0, 0].numel()
    assert features.tokens.shape == (2, num_tokens, encoder.embedding)
    assert features.pooled.shape == (2, encoder.embedding)


def test_tokens_are_the_coarsest_map_in_voxel_order():
    encoder = build().eval()
    features = encoder(torch.randn(1, 1, 32, 48, 64))
    coarse = features.pyramid[-1]
    assert coarse.shape[2:] == (2, 3, 4)
    torch.testing.assert_close(features.tokens[0, (1 * 3 + 2) * 4 + 3], coarse[0, :, 1, 2, 3])


def test_pooling_starts_as_the_mean_of_average_and_maximum():
    volumes = torch.randn(3, 1, 48, 56, 48)
    features = build()(volumes)
    in_words = (features.tokens.mean(1) + features.tokens.max(1).values) / 2
    torch.testing.assert_close(features.pooled, in_words)
    averaged = build(pooling="mean")(volumes)
    torch.testing.assert_close(averaged.pooled, averaged.tokens.mean(1))


def test_pooling_of_every_stage_sees_what_one_step_of_the_coarsest_map_hides():
    """The vector is a linear map of the averages and maxima of all stages, fine to coarse."""
    encoder = build(pooling="every_stage")
    features = encoder(torch.randn(2, 1, 48, 56, 48))
    parts = [part for stage in features.pyramid for part in (stage.mean((2, 3, 4)), stage.amax((2, 3, 4)))]
    torch.testing.assert_close(features.pooled, encoder.mix(torch.cat(parts, dim=1)))


@pytest.mark.parametrize("pooling", ["mean", "mean_max", "every_stage"])
def test_every_parameter_learns(pooling):
    encoder = build(pooling=pooling)
    encoder(torch.randn(2, 1, 32, 32, 32)).pooled.square().sum().backward()
    silent = [name for name, value in encoder.named_parameters() if value.grad is None or not value.grad.any()]
    assert silent == []


def test_studies_do_not_leak_into_each_other():
    volumes = torch.randn(3, 1, 32, 32, 32)
    encoder = build()
    torch.testing.assert_close(encoder(volumes).pooled[1:2], encoder(volumes[1:2]).pooled, atol=1e-5, rtol=1e-4)


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="give one each"):
        plain_conv.tiny().but(blocks=(1, 1))
    with pytest.raises(ValueError, match="multiples of groups"):
        plain_conv.tiny().but(groups=5)
    with pytest.raises(ValueError, match="must not be negative"):
        plain_conv.tiny().but(blocks=(0, 0, 0, -1))
    with pytest.raises(ValueError, match="reads 1 channels, the volumes have 2"):
        build()(torch.randn(1, 2, 16, 16, 16))


def test_the_shape_in_the_signature_is_checked():
    forward = jaxtyped(typechecker=beartype)(plain_conv.PlainConv.forward)
    forward(build(), torch.randn(1, 1, 16, 16, 16))
    with pytest.raises((BeartypeCallHintParamViolation, TypeError)):
        forward(build(), torch.randn(1, 16, 16, 16))
