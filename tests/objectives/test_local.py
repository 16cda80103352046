"""SSM and the contrast of fused with unfused sides are their definitions, sentence by sentence and pair by pair."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tomoglot.objectives.local import fused_contrast, sentence_likeness


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


PRESENT = torch.tensor([[True, True, True], [True, False, False], [False, False, False], [True, True, False]])


def likeness_in_words(features: Tensor, words: Tensor, present: Tensor, alike: float, unlike: float) -> Tensor:
    """Pairs of studies one after the other, as the released code walks them."""
    studies = [n for n in range(len(present)) if present[n].any()]
    of_pairs = []
    for one in studies:
        for other in studies:
            if one < other:
                entries = []
                for s in present[one].nonzero().flatten():
                    for t in present[other].nonzero().flatten():
                        wanted = F.cosine_similarity(words[one, s], words[other, t], dim=0)
                        found = F.cosine_similarity(features[one, s], features[other, t], dim=0)
                        if wanted >= alike:
                            entries.append((found - wanted).abs())
                        else:
                            entries.append(found.abs() if wanted <= unlike else torch.tensor(0.0))
                of_pairs.append(torch.stack(entries).mean())
    return torch.stack(of_pairs).mean()


@pytest.mark.parametrize(("alike", "unlike"), [(0.9, 0.6), (0.3, -0.2), (0.1, 0.1)])
def test_likeness_is_its_definition(alike: float, unlike: float) -> None:
    features, words = drawn(4, 3, 5), drawn(4, 3, 4, seed=1)
    found = sentence_likeness(features, words, PRESENT, alike=alike, unlike=unlike)
    torch.testing.assert_close(found, likeness_in_words(features, words, PRESENT, alike, unlike))


def test_sentences_of_one_study_are_not_compared_and_one_study_costs_nothing() -> None:
    features, words = drawn(4, 3, 5), drawn(4, 3, 4, seed=1)
    one = PRESENT & (torch.arange(4) == 0)[:, None]
    assert sentence_likeness(features, words, one) == 0
    assert sentence_likeness(features[:0], words[:0], PRESENT[:0]) == 0


def test_between_the_gates_features_are_left_alone() -> None:
    """The same words pull together, others push apart, and what is neither does nothing."""
    words = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]], [[0.75, 0.6614]], [[0.0, 1.0]]])
    features = drawn(4, 1, 5).requires_grad_()
    for other, moved in ((1, True), (2, False), (3, True)):
        features.grad = None
        kept = torch.tensor([0, other])
        sentence_likeness(features[kept], words[kept], torch.ones(2, 1, dtype=torch.bool)).backward()
        assert features.grad is not None and bool(features.grad.any()) == moved


def test_gates_that_overlap_are_refused() -> None:
    with pytest.raises(ValueError, match="the gates overlap"):
        sentence_likeness(drawn(2, 1, 3), drawn(2, 1, 3), torch.ones(2, 1, dtype=torch.bool), alike=0.5, unlike=0.6)


def test_a_reader_chooses_among_its_own_fused_forms() -> None:
    fused, plain, belongs = drawn(3, 2, 4), drawn(2, 4, seed=1), torch.tensor([[1, 0, 1], [0, 1, 0]]).bool()
    total = 0.0
    for reader in range(2):
        cosines = torch.stack([F.cosine_similarity(fused[i, reader], plain[reader], dim=0) for i in range(3)])
        shares = (cosines / 0.2).softmax(0).log()
        total -= shares[belongs[reader]].mean()
    torch.testing.assert_close(fused_contrast(fused, plain, belongs, temperature=0.2), total / 2)


def test_a_reader_that_does_not_read_learns_nothing() -> None:
    """Text alone: every candidate is the same, so the loss is that of a guess."""
    plain = drawn(4, 6)
    fused = (2 * plain).expand(4, -1, -1)
    loss = fused_contrast(fused, plain, torch.eye(4, dtype=torch.bool), temperature=0.1)
    torch.testing.assert_close(loss, torch.tensor(4.0).log())
    with pytest.raises(ValueError, match="1 of 4 reader rows"):
        fused_contrast(fused, plain, torch.diag(torch.tensor([True, True, True, False])), temperature=0.1)
