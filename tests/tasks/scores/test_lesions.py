"""Lesions counted one by one, by hand and beside a slow definition."""

import numpy as np
import pytest
from scipy import ndimage

from tomoglot.tasks.scores.lesions import score_lesions


def line(text: str) -> np.ndarray:
    return np.array([[[letter == "x" for letter in text]]])


@pytest.mark.parametrize(
    ("predicted", "true", "counts", "dice", "f1"),
    [
        ("xx..xx..xx", "xx..xx....", (2, 0, 1), 2 / 3, 2 / 2.5),  # one false alarm
        ("xx........", "xx..xx..xx", (1, 2, 0), 1 / 3, 1 / 2),  # two missed
        ("xxxxxx....", "xx..xx....", (2, 0, 0), (4 / 8 + 4 / 8) / 2, 1.0),  # two drawn as one
        ("x.x.......", "xxx.......", (1, 0, 0), 4 / 5, 1.0),  # one drawn as two
        ("....xx....", "xx........", (0, 1, 1), 0.0, 0.0),
        ("..........", "xx........", (0, 1, 0), 0.0, 0.0),
    ],
)
def test_lesions_by_hand(predicted, true, counts, dice, f1):
    found = score_lesions(line(predicted), line(true))
    assert (found.found, found.missed, found.false) == counts
    assert found.dice == pytest.approx(dice) and found.f1 == pytest.approx(f1)


def test_calling_everything_finds_nothing_unless_one_voxel_is_enough():
    true = np.zeros((8, 8, 8), dtype=bool)
    true[1, 1, 1] = true[5, 5, 5] = True
    assert score_lesions(np.ones_like(true), true).f1 == 0
    assert score_lesions(np.ones_like(true), true, least_iou=0.0).f1 == 1


def test_corners_join_and_a_gap_parts():
    one = np.zeros((4, 4, 4), dtype=bool)
    one[0, 0, 0] = one[1, 1, 1] = True
    assert score_lesions(one, one).found == 1
    one[1, 1, 1], one[2, 2, 2] = False, True
    assert score_lesions(one, one).found == 2


def in_words(predicted, true, least_iou):
    drawn, num_drawn = ndimage.label(predicted, np.ones((3, 3, 3)))
    lesions, num = ndimage.label(true, np.ones((3, 3, 3)))
    dices, found = [], 0
    for number in range(1, num + 1):
        lesion = lesions == number
        touching = set(np.unique(drawn[lesion])) - {0}
        together = np.isin(drawn, list(touching))
        shared, union = (lesion & together).sum(), (lesion | together).sum()
        dices.append(2 * shared / (lesion.sum() + together.sum()))
        found += bool(touching) and shared / union >= least_iou
    false = sum(not (true & (drawn == number)).any() for number in range(1, num_drawn + 1))
    return sum(dices) / (num + false), found / (found + (num - found + false) / 2)


@pytest.mark.parametrize("seed", range(5))
def test_lesion_scores_are_their_slow_definition(seed):
    rng = np.random.default_rng(seed)
    true = ndimage.binary_dilation(rng.random((14, 13, 12)) < 0.01)
    predicted = np.roll(true, rng.integers(0, 3, 3), (0, 1, 2)) | (rng.random(true.shape) < 0.005)
    found = score_lesions(predicted, true, least_iou=0.3)
    assert (found.dice, found.f1) == pytest.approx(in_words(predicted, true, 0.3))


def test_without_any_lesion_there_is_no_score():
    nothing = np.zeros((3, 3, 3), dtype=bool)
    assert np.isnan(score_lesions(nothing, nothing).f1) and np.isnan(score_lesions(nothing, nothing).dice)
