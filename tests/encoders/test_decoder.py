"""Decoders without skips: their sizes, that the bottleneck carries everything, and that neighbours are known."""

import dataclasses
import itertools

import pytest
import torch
from torch.nn import functional as F

from tomoglot.batches.mask import block_mask
from tomoglot.encoders.decoder import BottleneckDecoder, Neighbours, PatchDecoder
from tomoglot.encoders.patches import Voxels, patchify, take_visible
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


@pytest.mark.parametrize("grid", [(3, 4, 2), (4, 3, 1), (1, 5, 1)])
def test_a_token_reads_itself_and_those_around_it(grid: Voxels) -> None:
    torch.manual_seed(0)
    block = Neighbours(6)
    tokens = torch.randn(2, grid[0] * grid[1] * grid[2], 6)
    cells, weight = block.norm(tokens).unflatten(1, grid), block.around.weight
    expected = torch.zeros(2, *grid, 6)
    for i, j, k in itertools.product(*map(range, grid)):
        heard = block.around.bias.clone().expand(2, 6)
        for di, dj, dk in itertools.product((-1, 0, 1), repeat=3):
            at = (i + di, j + dj, k + dk)
            if all(0 <= place < edge for place, edge in zip(at, grid, strict=True)):
                heard = heard + cells[:, *at] @ weight[:, :, di + 1, dj + 1, dk + 1].T
        expected[:, i, j, k] = block.mix(F.gelu(heard))
    torch.testing.assert_close(block(tokens, grid), tokens + expected.flatten(1, 3), atol=1e-5, rtol=1e-4)


def test_neighbours_are_known_from_the_first_step_and_attention_has_to_find_them() -> None:
    # Waves of any direction and phase: a patch follows from those around it, and its place says nothing of it.
    generator = torch.Generator().manual_seed(0)
    at = torch.stack(torch.meshgrid(*[torch.arange(16.0)] * 3, indexing="ij"), dim=-1)
    missed = {}
    for mixing in ("attention", "neighbours"):
        torch.manual_seed(0)
        decoder = PatchDecoder(
            PatchDecoder.Config(mixing=mixing, width=48, layers=1, heads=4), image_width=64, voxels=64
        )
        optimiser = torch.optim.AdamW(decoder.parameters(), lr=3e-3)
        losses = []
        for _ in range(60):
            directions = F.normalize(torch.randn(8, 3, generator=generator), dim=1) * 0.4
            phases = 6.28 * torch.rand(8, generator=generator)
            volumes = torch.einsum("ijkx,bx->bijk", at, directions) + phases[:, None, None, None]
            patches = patchify(volumes.sin()[:, None], (4, 4, 4))
            visible = ~block_mask((16, 16, 16), (4, 4, 4), 0.5, generator, batch=8).flatten(1)
            rebuilt = decoder(take_visible(patches, visible), visible, (4, 4, 4))
            loss = (rebuilt - patches)[~visible].square().mean() / patches.square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        missed[mixing] = sum(losses[-10:]) / 10
    assert missed["neighbours"] < 0.5 < 0.8 < missed["attention"], missed


def test_heads_must_divide_the_width_where_there_are_heads() -> None:
    assert PatchDecoder.Config(mixing="neighbours", width=90, heads=8).width == 90
    with pytest.raises(ValueError, match="heads 8 must divide width 90"):
        PatchDecoder.Config(width=90, heads=8)
