"""Losses of labels are their definitions, and what is not known has no say."""

import math

import pytest
import torch

from tomoglot.objectives.classes import class_focal, known_cross_entropy, known_focal

LOGITS = torch.tensor([[0.3, -2.0], [1.5, 0.2], [-0.4, 3.0]])
LABELS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
KNOWN = torch.tensor([[True, True], [False, True], [True, False]])


def focal_in_words(gamma: float, alpha: float) -> float:
    terms = []
    for row, column in KNOWN.nonzero().tolist():
        present = 1 / (1 + math.exp(-float(LOGITS[row, column])))
        is_there = bool(LABELS[row, column])
        truth = present if is_there else 1 - present
        terms.append(-(alpha if is_there else 1 - alpha) * (1 - truth) ** gamma * math.log(truth))
    return sum(terms) / len(terms)


def test_focal_is_its_definition_and_without_gamma_half_the_cross_entropy() -> None:
    given = (LOGITS, LABELS, KNOWN)
    assert float(known_focal(*given)) == pytest.approx(focal_in_words(2.0, 0.25), rel=1e-5)
    assert float(known_focal(*given, gamma=1.0, alpha=0.7)) == pytest.approx(focal_in_words(1.0, 0.7), rel=1e-5)
    assert float(known_focal(*given, gamma=0.0, alpha=0.5)) == pytest.approx(float(known_cross_entropy(*given)) / 2)


@pytest.mark.parametrize("loss", [known_cross_entropy, known_focal])
def test_unknown_labels_have_no_say_and_nothing_known_gives_a_zero_with_a_gradient(loss) -> None:
    changed = LABELS.clone()
    changed[~KNOWN] = 1 - changed[~KNOWN]
    assert torch.equal(loss(LOGITS, LABELS, KNOWN), loss(LOGITS, changed, KNOWN))
    assert not torch.equal(loss(LOGITS, LABELS, KNOWN), loss(LOGITS, 1 - LABELS, KNOWN))
    logits = LOGITS.clone().requires_grad_()
    nothing = loss(logits, LABELS, torch.zeros_like(KNOWN))
    nothing.backward()
    assert nothing == 0 and logits.grad is not None and (logits.grad == 0).all()


def test_class_focal_is_its_definition_and_without_gamma_cross_entropy() -> None:
    classes = torch.tensor([0, 1, 0])
    terms = [
        -((1 - truth) ** 2) * math.log(truth)
        for truth in (float(LOGITS[row].softmax(0)[at]) for row, at in enumerate(classes.tolist()))
    ]
    assert float(class_focal(LOGITS, classes)) == pytest.approx(sum(terms) / 3, rel=1e-5)
    torch.testing.assert_close(
        class_focal(LOGITS, classes, gamma=0.0), torch.nn.functional.cross_entropy(LOGITS, classes)
    )
