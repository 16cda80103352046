"""Both sides read one memory, the report reads the image, and each can be taken away."""

import pytest
import torch

from tomoglot.encoders.memory import Memory, MemoryFusion


def config(**changes):
    return MemoryFusion.Config(width=12, heads=3, layers=2, slots=10, best=4).but(**changes)


def fusion(seed=0, **changes):
    torch.manual_seed(seed)
    built = MemoryFusion(config(**changes), image_width=7, text_width=5)
    if built.memory is not None:
        # Slots start too small to be seen in a test.
        with torch.no_grad():
            built.memory.matrix.normal_()
    return built


def sides(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 4, 5, generator=generator), torch.randn(2, 6, 7, generator=generator)


def read_in_words(memory, token, best):
    """One token, one head after the other, only the best slots."""
    heads, width = memory.heads, len(token)
    found = []
    for head in range(heads):
        part = slice(head * width // heads, (head + 1) * width // heads)
        query = memory.query(token)[part]
        logits = [query @ memory.key(slot)[part] / len(query) ** 0.5 for slot in memory.matrix]
        kept = sorted(range(len(logits)), key=lambda at: -logits[at].item())[:best]
        shares = torch.stack([logits[at] for at in kept]).softmax(0)
        found.append(sum(share * memory.value(memory.matrix[at])[part] for share, at in zip(shares, kept, strict=True)))
    return memory.out(torch.cat(found))


@pytest.mark.parametrize("best", [None, 3])
def test_reading_is_its_definition(best):
    torch.manual_seed(0)
    memory = Memory(12, slots=10, heads=3, best=best)
    with torch.no_grad():
        memory.matrix.normal_()
    tokens = torch.randn(2, 4, 12)
    found = memory(tokens)
    for row in range(2):
        for at in range(4):
            torch.testing.assert_close(found[row, at], read_in_words(memory, tokens[row, at], best or 10))


def test_only_the_best_slots_of_a_token_learn_from_it():
    torch.manual_seed(0)
    memory = Memory(12, slots=50, heads=3, best=2)
    memory(torch.randn(1, 1, 12)).square().sum().backward()
    assert 2 <= int((memory.matrix.grad.abs().sum(dim=1) > 0).sum()) <= 6
    whole = Memory(12, slots=50, heads=3, best=None)
    whole(torch.randn(1, 1, 12)).square().sum().backward()
    assert bool((whole.matrix.grad.abs().sum(dim=1) > 0).all())


def test_slots_start_small():
    torch.manual_seed(0)
    matrix = Memory(100, slots=400, heads=4, best=None).matrix
    assert 0.0095 < matrix.std().item() < 0.0105


@pytest.mark.parametrize("side", ["text", "image"])
def test_both_sides_read_the_memory(side):
    built, (text, image) = fusion(), sides()
    before, read = built(text, image), built.memory.forward
    length = {"text": 4, "image": 6}[side]
    built.memory.forward = lambda tokens: read(tokens) * (tokens.shape[1] != length)
    assert not torch.allclose(built(text, image), before)


def test_without_slots_there_is_no_memory_and_all_else_starts_the_same():
    with_memory, without = fusion(), fusion(slots=0)
    assert without.memory is None
    rest = {name: value for name, value in with_memory.state_dict().items() if not name.startswith("memory.")}
    assert rest.keys() == without.state_dict().keys()
    for name, value in without.state_dict().items():
        torch.testing.assert_close(value, rest[name])
    assert not torch.allclose(with_memory(*sides()), without(*sides()))


def test_the_report_reads_its_own_image_and_only_what_is_attended():
    built, (text, image) = fusion(), sides()
    before = built(text, image)
    assert not torch.allclose(built(text, image.flip(0)), before)
    attended = torch.ones(2, 6, dtype=torch.bool)
    attended[:, 4:] = False
    cut = built(text, image, attended)
    other = image.clone()
    other[:, 4:] = 50.0
    torch.testing.assert_close(built(text, other, attended), cut)
    torch.testing.assert_close(built(text, image[:, :4]), cut)


def test_alone_reads_neither_image_nor_memory():
    built, (text, image) = fusion(), sides()
    before = built.alone(text)
    with torch.no_grad():
        built.memory.matrix.normal_()
    torch.testing.assert_close(built.alone(text), before)
    assert before.shape == built(text, image).shape


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="heads 5 must divide width 12"):
        config(heads=5)
    with pytest.raises(ValueError, match="best is 11, the memory has 10 slots"):
        config(best=11)
    assert config(slots=0, best=11).slots == 0
