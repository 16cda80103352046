"""Fusion: attention is its definition, one key is refused, absence and order change nothing, every part has a say."""

import math

import pytest
import torch
from torch import nn

from tomoglot.encoders.fusion import (
    Attention,
    Block,
    CognitionTransformer,
    RunningStandardiser,
    SemanticAggregation,
    SequenceTokens,
    grid_positions,
)
from tomoglot.encoders.vision import VisionEncoder

SEQUENCES = ("t1w", "flair", "dwi")


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some_acquired() -> torch.Tensor:
    return torch.tensor([[True, True, True], [True, False, True], [False, True, False]])


def cct(layers: int = 2) -> CognitionTransformer:
    torch.manual_seed(0)
    net = CognitionTransformer(16, SEQUENCES, heads=2, layers=layers).eval()
    # As drawn, sequence vectors and biases are too small to tell a broken mask from a working one.
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    return net


def attention_in_words(net: Attention, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """One row, one query and one head at a time."""
    size = queries.shape[-1] // net.heads
    query, (key, value) = net.query(queries), net.key_value(keys).chunk(2, dim=-1)
    mixed = torch.zeros_like(query)
    for row in range(len(queries)):
        for at in range(queries.shape[1]):
            for head in range(net.heads):
                part = slice(head * size, (head + 1) * size)
                logits = [float(query[row, at, part] @ one[part]) / math.sqrt(size) for one in key[row]]
                shares = torch.tensor(logits).softmax(dim=0)
                mixed[row, at, part] = sum(share * one[part] for share, one in zip(shares, value[row], strict=True))
    return net.out(mixed)


@torch.no_grad()
def test_attention_is_its_definition_and_a_mask_leaves_keys_out() -> None:
    torch.manual_seed(0)
    net = Attention(8, heads=2)
    queries, keys = drawn(2, 3, 8), drawn(2, 5, 8, seed=1)
    torch.testing.assert_close(net(queries, keys), attention_in_words(net, queries, keys))
    attended = torch.tensor([[True, True, False, True, False]] * 2)
    kept = keys[:, [0, 1, 3]]
    torch.testing.assert_close(net(queries, keys, attended), attention_in_words(net, queries, kept))
    weights = net.weights(queries, keys, attended)
    assert (weights[..., [2, 4]] == 0).all()
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 3))


def test_attention_over_a_single_key_is_refused_however_it_comes_about() -> None:
    net = Attention(8, heads=2)
    with pytest.raises(ValueError, match="over 1 key: the softmax would be 1"):
        net(drawn(2, 3, 8), drawn(2, 1, 8))
    attended = torch.tensor([[True, True], [True, False]])
    with pytest.raises(ValueError, match="over 1 key"):
        net(drawn(2, 3, 8), drawn(2, 2, 8), attended)
    csa = SemanticAggregation(8, heads=2)
    with pytest.raises(ValueError, match="more wordings"):
        csa(drawn(2, 5, 8), drawn(1, 8))
    with pytest.raises(ValueError, match="finer token_stride"):
        csa(drawn(2, 1, 8), drawn(3, 8))
    with pytest.raises(ValueError, match="make it a multiple"):
        Attention(9, heads=2)


@torch.no_grad()
def test_both_streams_of_csa_depend_on_both_sides_and_can_be_had_alone() -> None:
    torch.manual_seed(0)
    csa = SemanticAggregation(8, heads=2).eval()
    image, text = drawn(2, 5, 8), drawn(3, 8, seed=1)
    found = csa(image, text)
    assert {name: tuple(stream.shape) for name, stream in found.items()} == {
        "semantic": (2, 3, 8),
        "visual": (2, 5, 8),
    }
    for other in (csa(image + drawn(2, 5, 8, seed=2), text), csa(image, text + drawn(3, 8, seed=2))):
        assert all((other[name] - found[name]).abs().max() > 1e-3 for name in found)
    # Each study for itself.
    torch.testing.assert_close(csa(image[:1], text)["semantic"], found["semantic"][:1])
    for name in ("semantic", "visual"):
        alone = SemanticAggregation(8, heads=2, streams=name)
        assert set(alone(image, text)) == {name}
        assert len(list(alone.parameters())) < len(list(csa.parameters()))


@torch.no_grad()
def test_what_stands_in_the_place_of_an_absent_sequence_changes_nothing() -> None:
    net, tokens, acquired = cct(), drawn(3, 3, 4, 16), some_acquired()
    before = net(tokens, acquired, SEQUENCES)
    for value in (7.0, torch.inf, torch.nan):
        changed = torch.where(acquired[:, :, None, None], tokens, value)
        torch.testing.assert_close(net(changed, acquired, SEQUENCES), before, rtol=0, atol=0)
    # Nor do the other studies of the batch, however many sequences they have.
    for row in range(3):
        alone = net(tokens[row : row + 1], acquired[row : row + 1], SEQUENCES)
        torch.testing.assert_close(alone[0], before[row])


@torch.no_grad()
def test_the_order_of_channels_does_not_matter_and_their_names_do() -> None:
    net, tokens, acquired = cct(), drawn(3, 3, 4, 16), some_acquired()
    before = net(tokens, acquired, SEQUENCES)
    turned = [2, 0, 1]
    names = tuple(SEQUENCES[at] for at in turned)
    torch.testing.assert_close(net(tokens[:, turned], acquired[:, turned], names), before)
    assert (net(tokens, acquired, names) - before).abs().min(dim=1).values.max() > 1e-4
    # Fewer channels than were learned are fine.
    torch.testing.assert_close(
        net(tokens[:1, 1:2], acquired[:1, 1:2], ("flair",)),
        net(tokens[:1], torch.tensor([[False, True, False]]), SEQUENCES),
    )


@torch.no_grad()
def test_every_acquired_token_has_a_say() -> None:
    net, tokens, acquired = cct(), drawn(3, 3, 4, 16), some_acquired()
    before = net(tokens, acquired, SEQUENCES)
    for study, column in acquired.nonzero().tolist():
        for at in range(4):
            changed = tokens.clone()
            changed[study, column, at] += drawn(16, seed=9)
            assert (net(changed, acquired, SEQUENCES)[study] - before[study]).abs().max() > 1e-5


def test_a_study_without_a_sequence_and_an_unknown_sequence_are_refused() -> None:
    net, tokens, acquired = cct(), drawn(3, 3, 4, 16), some_acquired()
    acquired[1] = False
    with pytest.raises(ValueError, match="1 of 3 studies have no acquired sequence"):
        net(tokens, acquired, SEQUENCES)
    with pytest.raises(ValueError, match="no sequence adc was learned; known: t1w, flair, dwi"):
        net(tokens, some_acquired(), ("t1w", "adc", "dwi"))


def rollout_in_words(net: CognitionTransformer, tokens: torch.Tensor) -> torch.Tensor:
    """One study with all sequences: products of the attention matrices, each mixed half and half with the identity."""
    hidden = torch.cat([net.cls[None], (tokens + net.kind[:, None]).flatten(0, 1)])[None]
    flow = torch.eye(hidden.shape[1])
    for block in net.blocks:
        assert isinstance(block, Block)
        asking, asked = block.query_norm(hidden), block.context_norm(hidden)
        flow = (0.5 * block.attention.weights(asking, asked)[0] + 0.5 * torch.eye(hidden.shape[1])) @ flow
        hidden = block(hidden)
    return flow[0, 1:].view(tokens.shape[:2])


@torch.no_grad()
def test_rollout_is_its_definition_and_gives_absent_sequences_nothing() -> None:
    net, tokens, acquired = cct(), drawn(3, 3, 4, 16), some_acquired()
    shares = net.rollout(tokens, acquired, SEQUENCES)
    torch.testing.assert_close(shares[0], rollout_in_words(net, tokens[0]))
    assert (shares[~acquired] == 0).all() and (shares[acquired] > 0).all()
    assert (shares.sum(dim=(1, 2)) < 1).all(), "CLS keeps a share of itself"


def test_places_are_told_apart_and_do_not_depend_on_the_size_of_the_field() -> None:
    grid = grid_positions((4, 3, 5), stride=8, width=20)
    assert grid.shape == (60, 20) and len(torch.unique(grid.round(decimals=4), dim=0)) == 60
    # The centre of a field is the centre of any other.
    middle = grid_positions((5, 5, 5), stride=8, width=24)[62]
    torch.testing.assert_close(middle, grid_positions((1, 1, 1), stride=8, width=24)[0])
    assert grid_positions((2, 2, 2), stride=8, width=3).shape == (8, 3)


@torch.no_grad()
def test_a_volume_becomes_its_pooled_vector_and_the_steps_of_the_nearest_map() -> None:
    torch.manual_seed(0)
    encoder = VisionEncoder.Config.named("plain_conv:tiny").build().eval()
    features = encoder(drawn(2, 1, 32, 16, 16))
    for stride, expected in ((8, 8), (6, 8), (1, 2), (100, 16)):
        tokens = SequenceTokens(encoder, 24, stride=stride).eval()
        assert tokens.stride == expected
        assert tokens(features).shape == (2, 1 + (32 // expected) * (16 // expected) ** 2, 24)
    tokens = SequenceTokens(encoder, 24, stride=8).eval()
    first = tokens(features)
    pooled, steps = first[:, 0], first[:, 1:]
    torch.testing.assert_close(pooled, tokens.pooled(features.pooled))
    places = grid_positions((4, 2, 2), stride=8, width=24)
    level = features.pyramid[2][:, :, 3, 1, 0]
    torch.testing.assert_close(steps[:, 14] - places[14], tokens.steps(level))


def test_half_precision_features_are_standardised_in_full() -> None:
    standardise = RunningStandardiser(4, memory=1).train()
    rows = (3.0 + drawn(64, 4)).bfloat16()
    after = standardise(rows)
    assert after.dtype == torch.float32
    torch.testing.assert_close(after.mean(dim=0), torch.zeros(4), atol=1e-4, rtol=0)
