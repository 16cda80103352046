"""Dice and cross-entropy beside their slow definitions; a study without a mask has no say."""

import math

import pytest
import torch

from tomoglot.objectives.overlap import copies_apart, overlap_loss, region_cross_entropy, region_targets, soft_dice


def drawn(*, studies=3, regions=2, shape=(4, 5, 3), seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(studies, regions, *shape, generator=generator, requires_grad=True)
    targets = (torch.rand(studies, regions, *shape, generator=generator) > 0.7).float()
    return logits, targets, torch.tensor([True] * (studies - 1) + [False])


def dice_in_words(logits, targets, studies, *, squared):
    losses = []
    for study in studies:
        for region in range(logits.shape[1]):
            above = below = 0.0
            for logit, true in zip(
                logits[study, region].flatten().tolist(), targets[study, region].flatten().tolist(), strict=True
            ):
                predicted = 1 / (1 + math.exp(-logit))
                above += predicted * true
                below += predicted**2 + true**2 if squared else predicted + true
            losses.append(1 - (2 * above + 1) / (below + 1))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("squared", [True, False])
def test_soft_dice_is_its_definition_over_the_studies_with_a_mask(squared):
    logits, targets, known = drawn()
    expected = dice_in_words(logits, targets, (0, 1), squared=squared)
    assert soft_dice(logits, targets, known, squared=squared).item() == pytest.approx(expected, rel=1e-5)


def test_dice_over_the_batch_is_the_dice_of_the_studies_laid_side_by_side():
    logits, targets, _ = drawn()
    known = torch.ones(3, dtype=torch.bool)
    beside = torch.cat(list(logits), dim=1)[None], torch.cat(list(targets), dim=1)[None]
    torch.testing.assert_close(
        soft_dice(logits, targets, known, over_batch=True), soft_dice(*beside, torch.ones(1, dtype=torch.bool))
    )


def test_cross_entropy_is_its_definition_over_the_studies_with_a_mask():
    logits, targets, known = drawn()
    shown = logits.detach()[:2].sigmoid()
    words = -(targets[:2] * shown.log() + (1 - targets[:2]) * (1 - shown).log()).mean()
    torch.testing.assert_close(region_cross_entropy(logits, targets, known).detach(), words)


def test_a_study_without_a_mask_changes_neither_loss_nor_gradient():
    logits, targets, known = drawn()
    loss = overlap_loss([logits], targets, known)
    loss.backward()
    assert logits.grad[2].abs().sum() == 0 and logits.grad[:2].abs().sum() > 0
    with torch.no_grad():
        logits[2] += 5
    torch.testing.assert_close(overlap_loss([logits], targets, known), loss)


def test_without_any_mask_the_loss_is_a_zero_that_can_still_be_trained_on():
    logits, targets, _ = drawn()
    loss = overlap_loss([logits], targets, torch.zeros(3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0 and logits.grad.abs().sum() == 0


def test_a_right_answer_costs_nothing_and_a_wrong_one_nearly_all():
    _, targets, known = drawn()
    right = (targets - 0.5) * 60
    assert overlap_loss([right], targets, known).item() < 1e-3
    assert soft_dice(-right, targets, known).item() > 0.9


def test_outputs_are_summed_and_coarse_targets_keep_small_lesions():
    logits, targets, known = drawn(shape=(4, 4, 4))
    coarse = torch.randn(3, 2, 2, 2, 2)
    shares = targets.reshape(3, 2, 2, 2, 2, 2, 2, 2).mean(dim=(3, 5, 7))
    both = overlap_loss([logits, coarse], targets, known)
    apart = overlap_loss([logits], targets, known) + overlap_loss([coarse], shares, known)
    torch.testing.assert_close(both, apart)


def test_the_weights_are_those_of_the_two_terms():
    logits, targets, known = drawn()
    found = overlap_loss([logits], targets, known, dice_weight=2.0, cross_entropy_weight=5.0)
    torch.testing.assert_close(
        found, 2 * soft_dice(logits, targets, known) + 5 * region_cross_entropy(logits, targets, known)
    )


def test_regions_may_lie_within_one_another_and_a_missing_mask_is_not_an_empty_one():
    masks = torch.tensor([[[[0, 1, 2, 3]]], [[[0, 0, 0, 0]]], [[[-1, -1, -1, -1]]]], dtype=torch.int16)
    targets, known = region_targets(masks, [(2,), (1, 2), (1, 2, 3)])
    assert targets[0, :, 0, 0].tolist() == [[0, 0, 1, 0], [0, 1, 1, 0], [0, 1, 1, 1]]
    assert known.tolist() == [True, True, False] and targets[1:].sum() == 0
    with pytest.raises(ValueError, match="mask label"):
        region_targets(masks, [()])


def test_copies_apart_is_a_mean_square():
    one, other = torch.randn(2, 5), torch.randn(2, 5)
    torch.testing.assert_close(copies_apart(one, other), ((one - other) ** 2).mean())
