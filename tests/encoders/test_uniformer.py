"""Our UniFormer computes what the released one computes."""

import pytest
import torch
from torch import nn

from tomoglot.encoders import uniformer
from tomoglot.encoders.vision import VisionEncoder
from tomoglot.encoders.weights import load_weights, read_weights

PREFIX = "encoder.uniformer."


@pytest.fixture
def released(shared):
    tensors = read_weights(shared / "parity" / "brainmvp_uniformer_narrow.safetensors")
    encoder = uniformer.narrow().build().eval()
    return encoder, load_weights(encoder, tensors, strip=PREFIX, min_share=1.0), tensors


@pytest.fixture
def numbers(shared):
    return read_weights(shared / "parity" / "brainmvp_uniformer_narrow_io.safetensors")


def test_every_released_weight_finds_its_place(released):
    _, coverage, tensors = released
    assert len(coverage.matched) == len(tensors)
    assert (coverage.missing, coverage.unexpected, coverage.reshaped) == ((), (), ())


@torch.no_grad()
def test_every_stage_equals_the_released_numbers(released, numbers):
    encoder, _, _ = released
    for stage, ours in enumerate(encoder.stages(numbers["input"]), start=1):
        torch.testing.assert_close(ours, numbers[f"stage{stage}"], atol=1e-4, rtol=0)


@torch.no_grad()
def test_the_pyramid_comes_back_in_voxel_order(released, numbers):
    encoder, _, _ = released
    features = encoder(numbers["input"])
    for stage, level in enumerate(features.pyramid, start=1):
        theirs = numbers[f"stage{stage}"]  # axes k, i, j
        assert level.shape[2:] == tuple(edge // 2**stage for edge in numbers["input"].shape[2:])
        torch.testing.assert_close(level[..., 0], theirs[:, :, 0], atol=1e-4, rtol=0)
    coarse = features.pyramid[-1]
    assert coarse.shape[2:] == (2, 3, 2)
    torch.testing.assert_close(features.tokens[:, (1 * 3 + 2) * 2 + 1], coarse[:, :, 1, 2, 1])
    torch.testing.assert_close(features.pooled, coarse.mean((2, 3, 4)))


@torch.no_grad()
def test_the_axis_order_matters_to_released_weights(released, numbers):
    encoder, _, tensors = released
    other = uniformer.narrow().but(released_axes=False).build().eval()
    load_weights(other, tensors, strip=PREFIX, min_share=1.0)
    turned, ours = other(numbers["input"]).pooled, encoder(numbers["input"]).pooled
    assert (turned - ours).abs().max() > 1e-3


def test_the_full_encoder_has_the_released_names_and_shapes(shared):
    lines = (shared / "parity" / "brainmvp_uniformer_small_keys.tsv").read_text().splitlines()[1:]
    theirs = dict(line.split("\t") for line in lines)
    with torch.device("meta"):
        encoder = VisionEncoder.Config.named("uniformer").build()
    ours = {PREFIX + name: "x".join(map(str, value.shape)) for name, value in encoder.state_dict().items()}
    assert ours == theirs
    assert sum(value.numel() for value in encoder.parameters()) == 22_038_464


def test_attention_is_its_definition():
    torch.manual_seed(0)
    attention = uniformer._Attention(32, head_width=16)
    tokens = torch.randn(2, 5, 32)
    query, key, value = (part.view(2, 5, 2, 16) for part in attention.qkv(tokens).chunk(3, dim=2))
    mixed = torch.zeros(2, 5, 2, 16)
    for study in range(2):
        for head in range(2):
            likeness = query[study, :, head] @ key[study, :, head].T / 16**0.5
            mixed[study, :, head] = likeness.softmax(dim=1) @ value[study, :, head]
    torch.testing.assert_close(attention(tokens), attention.proj(mixed.reshape(2, 5, 32)))


def test_every_parameter_learns():
    torch.manual_seed(0)
    encoder = uniformer.tiny().build()
    encoder(torch.randn(2, 1, 32, 32, 48)).tokens.square().mul(torch.arange(1, 13)[:, None]).sum().backward()
    assert [name for name, value in encoder.named_parameters() if value.grad is None] == []


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="must divide"):
        uniformer.narrow().but(head_width=20)
    with pytest.raises(ValueError, match="needs a block"):
        uniformer.narrow().but(depths=(1, 0, 1, 1))
    encoder = uniformer.tiny().build()
    with pytest.raises(ValueError, match="at least 16"):
        encoder(torch.randn(1, 1, 32, 32, 15))
    with pytest.raises(ValueError, match="reads 1 channels"):
        encoder(torch.randn(1, 3, 32, 32, 32))


def test_patch_embeddings_and_blocks_keep_their_own_epsilon():
    # The released numbers cannot tell: with the wrong one stage 4 moves by 1e-5, which is inside the tolerance.
    norms = {
        name: part.eps for name, part in uniformer.tiny().build().named_modules() if isinstance(part, nn.LayerNorm)
    }
    assert {eps for name, eps in norms.items() if name.startswith("patch_embed")} == {1e-5}
    assert {eps for name, eps in norms.items() if name.startswith("blocks")} == {1e-6}
