"""The decoder without skips: its sizes, and that the bottleneck carries everything."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from tomoglot.encoders.decoder import BottleneckDecoder
from tomoglot.encoders.vision import VisionEncoder


@pytest.mark.parametrize("name", ["plain_conv:tiny", "uniformer:tiny"])
@pytest.mark.parametrize("shape", [(16, 32, 16), (40, 48, 40), (17, 22, 31)])
def test_voxels_come_back_in_the_size_that_was_encoded(name: str, shape: tuple[int, int, int]) -> None:
    encoder = VisionEncoder.Config.named(name).build().eval()
    decoder = BottleneckDecoder(encoder.widths, encoder.strides)
    assert decoder(encoder(torch.randn(2, 1, *shape)), shape).shape == (2, 1, *shape)


def test_nothing_but_the_coarsest_map_reaches_the_voxels() -> None:
    encoder = VisionEncoder.Config.named("plain_conv:tiny").build().eval()
    decoder = BottleneckDecoder(encoder.widths, encoder.strides)
    features = encoder(torch.randn(1, 1, 20, 20, 20))
    *fine, coarse = features.pyramid
    noise = dataclasses.replace(features, pyramid=(*map(torch.randn_like, fine), coarse))
    assert torch.equal(decoder(noise, (20, 20, 20)), decoder(features, (20, 20, 20)))
    other = dataclasses.replace(features, pyramid=(*fine, torch.randn_like(coarse)))
    assert not torch.allclose(decoder(other, (20, 20, 20)), decoder(features, (20, 20, 20)))


def test_each_bottleneck_voxel_paints_its_own_block() -> None:
    decoder = BottleneckDecoder((4, 8), (2, 8), linear=True)
    encoder_like = VisionEncoder.Config.named("plain_conv:tiny").build()(torch.zeros(1, 1, 16, 16, 16))
    dark = torch.zeros(1, 8, 2, 2, 2)
    bright = dark.clone()
    bright[0, :, 1, 0, 1] = 1.0
    made = [
        decoder(dataclasses.replace(encoder_like, pyramid=(torch.zeros(1, 4, 8, 8, 8), coarse)), (16, 16, 16))
        for coarse in (dark, bright)
    ]
    changed = (made[1] - made[0])[0, 0].abs() > 0
    assert changed[8:, :8, 8:].all()
    assert changed.sum() == 8**3


def test_a_linear_decoder_equals_the_released_chain_of_layers() -> None:
    """The released one ends in a transposed convolution and a 1x1x1 convolution; both together are one layer."""
    torch.manual_seed(0)
    wide, point = torch.nn.ConvTranspose3d(6, 5, 2, stride=2), torch.nn.Conv3d(5, 1, 1)
    decoder = BottleneckDecoder((6,), (2,), linear=True)
    assert len(decoder.stages[0]) == 1
    merged = decoder.stages[0][0]
    with torch.no_grad():
        merged.weight.copy_(torch.einsum("abijk,cb->acijk", wide.weight, point.weight[:, :, 0, 0, 0]))
        merged.bias.copy_(point(wide.bias[None, :, None, None, None]).flatten())
    coarse = torch.randn(2, 6, 3, 3, 3)
    torch.testing.assert_close(merged(coarse), point(wide(coarse)))


def test_a_lost_remainder_is_filled_with_the_last_voxel() -> None:
    from tomoglot.encoders.decoder import _fit

    grown = torch.randn(1, 2, 4, 4, 4)
    fitted = _fit(grown, (5, 3, 4))
    assert fitted.shape == (1, 2, 5, 3, 4)
    torch.testing.assert_close(fitted[:, :, 4], grown[:, :, 3, :3])
    torch.testing.assert_close(fitted, F.pad(grown, (0, 0, 0, 0, 0, 1), mode="replicate")[..., :3, :])


def test_strides_that_do_not_nest_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of the one before"):
        BottleneckDecoder((4, 8), (2, 3))
    with pytest.raises(ValueError, match="one of each a stage"):
        BottleneckDecoder((4, 8), (2,))
    encoder = VisionEncoder.Config.named("plain_conv:tiny").build()
    with pytest.raises(ValueError, match="built for 2 maps, the pyramid has 4"):
        BottleneckDecoder((4, 8), (2, 4))(encoder(torch.zeros(1, 1, 16, 16, 16)), (16, 16, 16))
