"""The transformer keeps the contract in 3D and 2D, and visible patches alone are what it reads and pays for."""

import pytest
import torch
from torch.nn import functional as F

from tomoglot.batches.mask import block_mask, voxel_mask
from tomoglot.encoders import vit
from tomoglot.encoders.patches import patchify, take_visible
from tomoglot.encoders.vision import VisionEncoder
from tomoglot.encoders.weights import load_weights

SHAPE = (24, 16, 32)


def build(**changes):
    torch.manual_seed(0)
    return vit.tiny().but(**({"depth": 2, "width": 24, "heads": 2} | changes)).build().eval()


def hidden_patches(ratio=0.75, batch=2):
    return block_mask(SHAPE, 8, ratio, torch.Generator().manual_seed(3), batch=batch)


def encode_in_words(encoder, volume):
    """One volume, one patch after the other, attention written out."""
    tokens = []
    grid = [edge // 8 for edge in volume.shape[1:]]
    for i in range(grid[0]):
        for j in range(grid[1]):
            for k in range(grid[2]):
                box = volume[None, :, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8, 8 * k : 8 * k + 8]
                position = encoder.positions((i + 1, j + 1, k + 1), volume)[0, -1]
                tokens.append(encoder.embed(box).flatten() + position)
    tokens = torch.stack(tokens)
    for block in encoder.blocks:
        query, key, value = block.qkv(block.norm1(tokens)).chunk(3, dim=-1)
        heads = []
        for q, k, v in zip(*(part.chunk(block.heads, dim=-1) for part in (query, key, value)), strict=True):
            heads.append((q @ k.T / q.shape[-1] ** 0.5).softmax(-1) @ v)
        tokens = tokens + block.proj(torch.cat(heads, dim=-1))
        tokens = tokens + block.mlp[2](F.gelu(block.mlp[0](block.norm2(tokens))))
    return encoder.norm(tokens)


def test_it_is_its_definition():
    encoder = build()
    volumes = torch.randn(2, 1, *SHAPE)
    features = encoder(volumes)
    torch.testing.assert_close(features.tokens[1], encode_in_words(encoder, volumes[1]), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(features.pooled, features.tokens.mean(1))
    torch.testing.assert_close(features.pyramid[0][:, :, 1, 0, 3], features.tokens[:, (1 * 2 + 0) * 4 + 3])


@pytest.mark.parametrize(("patch", "shape"), [((8, 8, 8), SHAPE), ((8, 8, 1), (24, 16, 1)), ((8, 4, 4), SHAPE)])
def test_a_stem_sees_one_patch_at_a_time(patch, shape):
    encoder = build(stem=(4, 6), patch=patch)
    volumes = torch.randn(2, 1, *shape)
    _, whole = encoder._embed(patchify(volumes, patch))
    box = volumes[1:, :, -patch[0] :, -patch[1] :, -patch[2] :]
    torch.testing.assert_close(encoder.embed(encoder.stem(box)).flatten(), whole[1, -1])
    other = volumes.clone()
    other[:, :, : patch[0], : patch[1], : patch[2]] += 1
    same = (encoder._embed(patchify(other, patch))[1] == whole).all(dim=-1)
    assert not same[:, 0].any() and same[:, 1:].all()
    encoder(volumes).pooled.sum().backward()
    assert all(module.weight.grad.abs().sum() > 0 for module in encoder.stem if hasattr(module, "weight"))


def test_the_maps_of_a_stem_are_the_finer_maps_of_the_pyramid():
    """A convolution over one patch at a time, its places in the volume: the definition, patch after patch."""
    encoder = build(stem=(4, 6))
    volumes = torch.randn(2, 1, *SHAPE)
    features = encoder(volumes)
    assert encoder.widths == (4, 6, 24) and encoder.strides == (2, 4, 8)
    assert [tuple(level.shape[1:]) for level in features.pyramid] == [(4, 12, 8, 16), (6, 6, 4, 8), (24, 3, 2, 4)]
    for g in [(0, 0, 0), (2, 1, 3), (1, 0, 2)]:
        box = volumes[1:, :, 8 * g[0] : 8 * g[0] + 8, 8 * g[1] : 8 * g[1] + 8, 8 * g[2] : 8 * g[2] + 8]
        one = encoder.stem[:2](box)[0]
        two = encoder.stem[2:4](one[None])[0]
        for level, its, edge in ((0, one, 4), (1, two, 2)):
            at = [slice(edge * place, edge * place + edge) for place in g]
            torch.testing.assert_close(features.pyramid[level][1, :, *at], its)
    # A step of a map is centred on the voxel that moves it alone.
    assert encoder.centre(0) == 0.0 and encoder.centre(2) == 3.5


def test_a_stem_down_to_one_voxel_has_no_second_map_of_the_tokens_stride():
    encoder = build(stem=(4, 6, 8))
    assert encoder.strides == (2, 4, 8) and encoder.widths == (4, 6, 24)
    assert len(encoder(torch.randn(1, 1, *SHAPE)).pyramid) == 3


def test_a_patch_that_cannot_be_halved_so_often_is_refused():
    with pytest.raises(ValueError, match="cannot be halved 2 times"):
        build(stem=(4, 6), patch=(8, 6, 8))


def test_standardised_patches_are_seen_beside_their_positions():
    """A window of a CT scan lies between 0 and 1: as drawn, a stem makes next to nothing of how studies differ."""
    air = torch.linspace(0, 1, SHAPE[0])[:, None, None]
    volumes = (air + 0.1 * torch.rand(8, 1, *SHAPE)).clamp(0, 1)
    apart = {}
    for standardise in (False, True):
        encoder = build(stem=(4, 6), standardise=standardise).train()
        _, embedded = encoder._embed(patchify(volumes, (8, 8, 8)))
        apart[standardise] = (embedded - embedded.mean(dim=0)).square().mean().item()
        if standardise:
            rows = embedded.flatten(0, 1)
            torch.testing.assert_close(rows.mean(dim=0), torch.zeros(24), atol=1e-4, rtol=0)
            assert ((rows.std(dim=0) - 1).abs() < 0.2).all()
    positions = encoder.positions((3, 2, 4), volumes).square().mean().item()
    assert apart[False] < 0.001 * positions < 0.05 * positions < apart[True]


def test_standardised_patches_do_not_depend_on_the_other_studies_nor_on_what_is_hidden():
    encoder = build(stem=(4, 6), standardise=True).train()
    volumes = torch.rand(4, 1, *SHAPE)
    encoder(volumes)
    encoder.eval()
    before = encoder.standardiser.mean.clone()
    torch.testing.assert_close(encoder(volumes).tokens[2:3], encoder(volumes[2:3]).tokens, atol=1e-5, rtol=1e-4)
    everything = torch.ones(4, 3 * 2 * 4, dtype=torch.bool)
    torch.testing.assert_close(encoder.encode_visible(volumes, everything), encoder(volumes).tokens)
    assert torch.equal(encoder.standardiser.mean, before)


def test_all_patches_visible_is_the_plain_encoding():
    encoder = build()
    volumes = torch.randn(2, 1, *SHAPE)
    tokens = encoder.encode_visible(volumes, torch.ones(2, 24, dtype=torch.bool))
    torch.testing.assert_close(tokens, encoder(volumes).tokens)


@pytest.mark.parametrize("positions", ["waves", "learned"])
def test_hidden_patches_are_never_read_and_visible_ones_keep_their_places(positions):
    encoder = build(positions=positions)
    volumes = torch.randn(2, 1, *SHAPE)
    hidden = hidden_patches()
    tokens = encoder.encode_visible(volumes, ~hidden.flatten(1))
    assert tokens.shape == (2, 6, 24)
    other = torch.where(voxel_mask(hidden, 8), torch.nan, volumes)
    torch.testing.assert_close(encoder.encode_visible(other, ~hidden.flatten(1)), tokens, rtol=0, atol=0)
    # Embedding and place of a visible patch are those it has among all patches.
    encoder.blocks = torch.nn.ModuleList()
    whole = take_visible(encoder(volumes).tokens, ~hidden.flatten(1))
    torch.testing.assert_close(encoder.encode_visible(volumes, ~hidden.flatten(1)), whole)


def test_the_work_falls_with_the_share_that_is_hidden():
    """Multiplications counted: three quarters hidden leave a quarter of the linear layers' work."""
    from torch.utils.flop_counter import FlopCounterMode

    encoder, volumes = build(), torch.randn(2, 1, *SHAPE)
    counts = []
    for run in (lambda: encoder(volumes), lambda: encoder.encode_visible(volumes, ~hidden_patches().flatten(1))):
        with FlopCounterMode(display=False) as counter:
            run()
        counts.append(counter.get_total_flops())
    assert counts[1] <= counts[0] / 4


def test_images_are_volumes_of_one_plane():
    encoder = build(patch=(8, 8, 1))
    images = torch.randn(2, 1, 32, 24, 1)
    features = encoder(images)
    assert features.pyramid[0].shape == (2, 24, 4, 3, 1)
    visible = torch.zeros(2, 12, dtype=torch.bool)
    visible[:, ::3] = True
    assert encoder.encode_visible(images, visible).shape == (2, 4, 24)
    assert encoder.strides == (8,)


@pytest.mark.parametrize("changes", [{}, {"positions": "learned", "grid": (2, 2, 2)}, {"pooling": "mean_max"}])
def test_any_size_goes_in_and_every_parameter_learns(changes):
    encoder = build(**changes).train()
    features = encoder(torch.randn(2, 1, 17, 22, 19))
    assert features.pyramid[0].shape == (2, 24, 3, 3, 3)
    features.pooled.square().sum().backward()
    silent = [name for name, value in encoder.named_parameters() if value.grad is None or not value.grad.any()]
    assert silent == []


def test_what_is_filled_up_is_zero():
    encoder = build()
    volume = torch.randn(1, 1, 12, 16, 16)
    filled = F.pad(volume, (0, 0, 0, 0, 0, 4))
    torch.testing.assert_close(encoder(volume).tokens, encoder(filled).tokens)


def test_learned_positions_are_interpolated_to_other_grids():
    encoder = build(positions="learned", grid=(2, 2, 2))
    volumes = torch.zeros(1, 1, 8, 8, 8)
    torch.testing.assert_close(encoder.positions((2, 2, 2), volumes)[0], encoder.learned.flatten(2)[0].T)
    middle = encoder.positions((1, 1, 1), volumes)[0, 0]
    torch.testing.assert_close(middle, encoder.learned.mean((2, 3, 4))[0])


def test_waves_tell_every_place_apart_and_do_not_depend_on_the_size_of_the_grid():
    table = vit.waves((5, 6, 7), 24)
    assert len(torch.unique(table, dim=0)) == 5 * 6 * 7
    large = vit.waves((8, 9, 10), 24).reshape(8, 9, 10, 24)
    torch.testing.assert_close(table.reshape(5, 6, 7, 24), large[:5, :6, :7])
    # (2, 0, 3): the first two thirds say 2 and 0; the slowest wave of four turns by 10000^(-3/4) a step.
    torch.testing.assert_close(table[2 * 42 + 3, 0], torch.tensor(2.0).sin())
    torch.testing.assert_close(table[2 * 42 + 3, 8:16], torch.tensor([0.0] * 4 + [1.0] * 4))
    torch.testing.assert_close(table[2 * 42 + 3, 19], torch.tensor(3 * 10_000**-0.75).sin())


def test_pooling_starts_as_the_mean_of_average_and_maximum():
    encoder = build(pooling="mean_max")
    features = encoder(torch.randn(2, 1, *SHAPE))
    torch.testing.assert_close(features.pooled, (features.tokens.mean(1) + features.tokens.amax(1)) / 2)


def test_weights_of_one_channel_fill_an_encoder_of_four_and_answer_alike():
    one, four = build(), build(in_channels=4)
    assert load_weights(four, one.state_dict(), adapt="mean").share == 1.0
    volume = torch.randn(1, 1, *SHAPE)
    torch.testing.assert_close(four(volume.expand(-1, 4, -1, -1, -1)).pooled, one(volume).pooled, atol=1e-5, rtol=1e-4)


def test_sizes_of_the_papers():
    with torch.device("meta"):
        for name, millions in [("vit:base", 88.2), ("vit:small", 22.9), ("vit:tiny", 0.5)]:
            encoder = VisionEncoder.Config.named(name).build()
            assert sum(value.numel() for value in encoder.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)
        # ViT-B/16 for images: 86,567,656 with its class token, its 197 positions and its classifier of 1,000.
        flat = vit.base().but(patch=(16, 16, 1), in_channels=3).build()
    assert sum(value.numel() for value in flat.parameters()) == 86_567_656 - 768 - 197 * 768 - 769 * 1_000


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="must divide width"):
        vit.tiny().but(heads=7)
    with pytest.raises(ValueError, match="must be positive"):
        vit.tiny().but(patch=(8, 8, 0))
    encoder = build()
    with pytest.raises(ValueError, match="reads 1 channels, the volumes have 2"):
        encoder(torch.randn(1, 2, *SHAPE))
    with pytest.raises(ValueError, match="reads 1 channels, the volumes have 2"):
        encoder.encode_visible(torch.randn(1, 2, *SHAPE), torch.ones(1, 24, dtype=torch.bool))
    with pytest.raises(ValueError, match="visible names 23 patches"):
        encoder.encode_visible(torch.randn(1, 1, *SHAPE), torch.ones(1, 23, dtype=torch.bool))
    with pytest.raises(ValueError, match="do not tile"):
        encoder.encode_visible(torch.randn(1, 1, 25, 16, 16), torch.ones(1, 16, dtype=torch.bool))


def test_patches_are_read_in_the_order_of_the_convolution():
    encoder = build(in_channels=2)
    volumes = torch.randn(1, 2, 16, 8, 8)
    slow = encoder.embed(volumes).flatten(2).transpose(1, 2)
    torch.testing.assert_close(encoder._embed(patchify(volumes, (8, 8, 8)))[1], slow, atol=1e-5, rtol=1e-4)
