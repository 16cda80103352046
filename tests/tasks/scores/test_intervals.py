"""Intervals against their slow definitions."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tomoglot.tasks.scores.intervals import by_rows, draw_subjects, holm, interval, macro_auroc, paired_test
from tomoglot.tasks.scores.regions import mean_statistic


def cohort(subjects=40, visits=2, signal=1.0, seed=0):
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(subjects), visits)
    label = np.repeat(rng.random(subjects) < 0.4, visits).astype(float)
    score = np.repeat(rng.normal(size=subjects), visits) + signal * label
    return owner, label, score


def test_all_studies_of_a_subject_are_drawn_together():
    owner = np.array([3, 1, 3, 2, 1])
    weights = draw_subjects(owner, draws=50, seed=1)
    assert (weights[:, 0] == weights[:, 2]).all() and (weights[:, 1] == weights[:, 4]).all()
    assert (weights[:, :2].sum(axis=1) + weights[:, 3] == 3).all()


def test_the_same_seed_gives_the_same_draws_and_another_seed_others():
    owner = np.arange(20)
    np.testing.assert_array_equal(draw_subjects(owner, draws=5, seed=1), draw_subjects(owner, draws=5, seed=1))
    assert (draw_subjects(owner, draws=5, seed=1) != draw_subjects(owner, draws=5, seed=2)).any()


def test_the_fast_auroc_interval_equals_the_slow_one_on_repeated_rows():
    owner, label, score = cohort()
    fast = interval(macro_auroc(score[:, None], label[:, None]), owner, draws=60, seed=4)
    slow = interval(by_rows(lambda s, y: roc_auc_score(y, s), score, label), owner, draws=60, seed=4)
    assert (fast.value, fast.low, fast.high) == pytest.approx((slow.value, slow.low, slow.high))


def test_repeating_every_study_does_not_narrow_the_interval():
    owner, label, score = cohort(visits=1)
    once = interval(macro_auroc(score[:, None], label[:, None]), owner, draws=400)
    many = interval(
        macro_auroc(np.repeat(score, 9)[:, None], np.repeat(label, 9)[:, None]), np.repeat(owner, 9), draws=400
    )
    assert many.high - many.low == pytest.approx(once.high - once.low)
    assert many.value == pytest.approx(once.value)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    # Scores N(1, 1) against N(0, 1): the AUROC is Phi(1 / sqrt 2) = 0.7602.
    hits = 0
    for seed in range(120):
        owner, label, score = cohort(subjects=120, visits=1, seed=seed)
        found = interval(macro_auroc(score[:, None], label[:, None]), owner, draws=300, seed=seed)
        hits += found.low <= 0.7602 <= found.high
    assert 0.88 <= hits / 120 <= 1.0


def test_a_draw_without_one_of_the_classes_leaves_the_finding_out_and_a_draw_without_any_is_not_counted():
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.1, 0.7]])
    labels = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    statistic = macro_auroc(scores, labels, np.array([[True, True], [True, False], [True, False]]))
    np.testing.assert_allclose(statistic(np.ones((1, 3))), [1.0])
    assert np.isnan(statistic(np.array([[0.0, 2.0, 1.0]]))[0])
    assert interval(statistic, np.arange(3), draws=300).draws < 300


def test_a_statistic_that_cannot_be_scored_has_no_bounds():
    found = interval(macro_auroc(np.zeros((4, 1)), np.zeros((4, 1))), np.arange(4), draws=10)
    assert np.isnan([found.value, found.low, found.high]).all() and found.draws == 0


@pytest.mark.parametrize(("people", "least"), [(1, 1.0), (2, 0.5), (4, 0.125), (30, 2 / 1000)])
def test_few_subjects_cannot_be_certain(people: int, least: float) -> None:
    """All of them better by the same: of n subjects that happens by chance in one of 2 ** (n - 1) cases."""
    rows = np.arange(people)
    better = mean_statistic(np.full((people, 1), 0.9))
    worse = mean_statistic(np.full((people, 1), 0.1))
    assert paired_test(better, worse, rows, draws=999).p == pytest.approx(least)


def test_a_paired_test_sees_a_difference_that_separate_intervals_would_hide():
    owner, label, score = cohort(subjects=150, visits=1, signal=0.8)
    worse = score - 0.5 * label
    ours, other = (macro_auroc(each[:, None], label[:, None]) for each in (score, worse))
    test = paired_test(ours, other, owner, draws=999)
    assert test.p <= 0.01 and test.low > 0
    assert interval(ours, owner, draws=999).low < interval(other, owner, draws=999).high
    assert paired_test(ours, ours, owner, draws=99).p == 1.0


def test_p_is_never_zero():
    owner, label, _ = cohort()
    perfect, wrong = macro_auroc(label[:, None], label[:, None]), macro_auroc(-label[:, None], label[:, None])
    assert paired_test(perfect, wrong, owner, draws=199).p == pytest.approx(2 / 200)


def test_holm_follows_the_worked_example_and_keeps_the_order():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.9, 0.8]) == [1.0, 1.0]


def test_no_study_is_an_error_that_says_so():
    with pytest.raises(ValueError, match="no study"):
        interval(macro_auroc(np.zeros((0, 1)), np.zeros((0, 1))), np.zeros(0), draws=5)
