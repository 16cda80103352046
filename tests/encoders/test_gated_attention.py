"""Each gate is its definition in words, what is not attended is not read, and the released gate is its algebra."""

import math

import pytest
import torch
from torch import Tensor

from tomoglot.encoders.gated_attention import GatedAttention, GatedFusion, GatedReader, apart_from_others

WIDTH = 12
GATES = ["softmax", "sigmoid", "own"]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def attention_in_words(module: GatedAttention, reader: Tensor, read: Tensor, there: list[bool]) -> Tensor:
    """One reader, token after token; "own" as the released loop writes it: a product for every token, then a mean."""
    query = module.query(reader)
    gates, values, owns = [], [], []
    for place, token in enumerate(read):
        if there[place]:
            score = query @ module.key(token) / math.sqrt(WIDTH)
            gates.append(score.exp() if module.gate == "softmax" else 1 / (1 + (-score).exp()))
            values.append(gates[-1] * module.value(token))
            owns.append(gates[-1] * module.value(reader))
    if module.gate == "softmax":
        return torch.stack(values).sum(0) / torch.stack(gates).sum()
    return torch.stack(owns if module.gate == "own" else values).mean(0)


@pytest.mark.parametrize("gate", GATES)
def test_a_gate_is_its_definition(gate: str) -> None:
    torch.manual_seed(0)
    module = GatedAttention(WIDTH, gate=gate)
    readers, read = drawn(2, 3, WIDTH), drawn(2, 5, WIDTH, seed=1)
    there = torch.tensor([[True] * 5, [True, False, True, False, True]])
    found = module(readers, read, there)
    for n in range(2):
        for t in range(3):
            expected = attention_in_words(module, readers[n, t], read[n], there[n].tolist())
            torch.testing.assert_close(found[n, t], expected)


@pytest.mark.parametrize("gate", GATES)
def test_what_is_not_attended_changes_nothing_and_nothing_to_read_gives_zeros(gate: str) -> None:
    module = GatedAttention(WIDTH, gate=gate)
    readers, read = drawn(3, 2, WIDTH).requires_grad_(), drawn(3, 4, WIDTH, seed=1).requires_grad_()
    there = torch.tensor([[True, True, False, False], [False] * 4, [True] * 4])
    found = module(readers, read, there)
    other = torch.where(there[..., None], read, 1e3)
    torch.testing.assert_close(module(readers, other, there), found)
    assert not found[1].any() and found[0].any() and found[2].any()
    found.square().sum().backward()
    assert readers.grad is not None and read.grad is not None
    assert readers.grad.isfinite().all() and read.grad.isfinite().all()
    assert not read.grad[1].any() and not read.grad[0, 2:].any()


def test_only_the_gates_that_take_the_other_sides_values_carry_what_it_says() -> None:
    """As released the other side scales a token: whatever is read, the direction stays that of its own value."""
    reader = drawn(1, 1, WIDTH)
    for gate in GATES:
        torch.manual_seed(0)
        module = GatedAttention(WIDTH, gate=gate)
        found = torch.cat([module(reader, drawn(1, 6, WIDTH, seed=seed)) for seed in (1, 2)]).flatten(1)
        cosine = torch.cosine_similarity(found[0], found[1], dim=0)
        assert bool(cosine > 0.9999) == (gate == "own")


def test_where_a_token_lies_steers_who_reads_it_and_is_not_read_itself() -> None:
    torch.manual_seed(0)
    module = GatedAttention(WIDTH, gate="softmax")
    readers, same, where = drawn(1, 2, WIDTH), drawn(1, 1, WIDTH, seed=1).expand(1, 4, -1), drawn(1, 4, WIDTH, seed=2)
    torch.testing.assert_close(module(readers, same, where=9 * where), module(readers, same))
    read = drawn(1, 4, WIDTH, seed=3)
    assert (module(readers, read, where=9 * where) - module(readers, read)).abs().max() > 0.01


def test_a_reader_without_a_residual_keeps_nothing_of_its_own() -> None:
    readers, nothing = drawn(1, 2, WIDTH), torch.zeros(1, 3, dtype=torch.bool)
    read = drawn(1, 3, WIDTH, seed=1)
    kept = GatedReader(WIDTH, gate="softmax", layers=2, residual=True)(readers, read, nothing)
    torch.testing.assert_close(kept, readers)
    assert not GatedReader(WIDTH, gate="softmax", layers=1, residual=False)(readers, read, nothing).any()


def test_what_a_sentence_reads_everywhere_is_taken_away() -> None:
    read = drawn(3, 3, 2, WIDTH)
    found = apart_from_others(read)
    for study in range(3):
        expected = read[study, study] - sum(read[image, study] for image in range(3)) / 3
        torch.testing.assert_close(found[study], expected)
    alike = drawn(1, 3, 2, WIDTH).expand(3, -1, -1, -1)
    torch.testing.assert_close(apart_from_others(alike), torch.zeros(3, 2, WIDTH))


def fusion(**changes: object) -> GatedFusion:
    torch.manual_seed(0)
    return GatedFusion(GatedFusion.Config(width=WIDTH).but(**changes), image_width=5, text_width=7)


@pytest.mark.parametrize("gate", ["softmax", "sigmoid"])
def test_sentences_that_read_apart_equal_single_readings_and_their_mean(gate: str) -> None:
    module, sentences = fusion(gate=gate), drawn(3, 2, WIDTH)
    seen = module.see(drawn(3, 5, 2, 3, 2, seed=1))
    assert seen.tokens.shape == (3, 12, WIDTH) and seen.where.shape == (1, 12, WIDTH)
    found = module.read_sentences(sentences, seen)
    for study in range(3):
        for sentence in range(2):
            one = sentences[study, sentence][None, None]
            alone = [module.sentence_reads(one, seen.tokens[n : n + 1], where=seen.where)[0, 0] for n in range(3)]
            torch.testing.assert_close(found[study, sentence], alone[study] - sum(alone) / 3)


def test_values_of_sentences_come_from_the_image_or_as_released_from_the_sentence() -> None:
    sentences, maps = drawn(2, 3, WIDTH), drawn(2, 5, 2, 2, 2, seed=1)
    for values, own in (("image", False), ("sentence", True)):
        module = fusion(values=values, apart=False)
        first, second = (module.read_sentences(sentences, module.see(one)) for one in (maps, maps.flip(0)))
        cosines = torch.cosine_similarity(first, second, dim=2)
        assert bool((cosines > 0.9999).all()) == own
