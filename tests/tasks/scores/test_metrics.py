"""Each metric against scikit-learn on repeated rows, and at its edges."""

import numpy as np
import pytest
from sklearn import metrics as reference

from tomoglot.tasks.scores.metrics import (
    METRICS,
    auroc,
    average_precision,
    balanced_accuracy,
    best_threshold,
    brier,
    calibration_error,
    class_balanced_accuracy,
    class_f1,
    f1,
)

REFERENCES = {
    "auroc": reference.roc_auc_score,
    "average_precision": reference.average_precision_score,
    "balanced_accuracy": lambda y, s: reference.balanced_accuracy_score(y, s >= 0.5),
    "f1": lambda y, s: reference.f1_score(y, s >= 0.5),
    "brier": reference.brier_score_loss,
    "calibration_error": lambda y, s: slow_calibration_error(y, s),
}


def slow_calibration_error(labels, scores):
    total = 0.0
    for low in np.arange(10) / 10:
        inside = (scores >= low) & ((scores < low + 0.1 - 1e-12) | ((low > 0.85) & (scores == 1)))
        if inside.any():
            total += inside.mean() * abs(scores[inside].mean() - labels[inside].mean())
    return total


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("ties", [False, True])
def test_weights_count_rows_as_often_as_repeating_them_would(name, ties):
    rng = np.random.default_rng(3)
    labels = (rng.random(60) < 0.35).astype(float)
    scores = np.clip(rng.random(60) * 0.7 + 0.3 * labels, 0, 0.999)
    if ties:
        scores = np.floor(scores * 5) / 5 + 0.05
    weights = rng.integers(0, 4, size=(7, 60)).astype(float)
    expected = [
        REFERENCES[name](np.repeat(labels, row.astype(int)), np.repeat(scores, row.astype(int))) for row in weights
    ]
    np.testing.assert_allclose(METRICS[name](scores, labels, weights), expected, rtol=1e-9, atol=1e-12)


def test_a_constant_score_is_worth_one_half():
    assert auroc(np.zeros(6), np.array([1, 0, 0, 1, 0, 0.0]))[0] == 0.5


@pytest.mark.parametrize("metric", [auroc, average_precision, balanced_accuracy])
def test_one_class_only_is_not_a_number(metric):
    assert np.isnan(metric(np.array([0.2, 0.8]), np.zeros(2))[0])


def test_no_row_is_not_a_number():
    nothing = np.zeros(0)
    for metric in (auroc, average_precision, brier, f1):
        assert np.isnan(metric(nothing, nothing)[0])


def test_a_calibrated_forecast_has_no_calibration_error():
    scores = np.array([0.25] * 4 + [0.75] * 4)
    labels = np.array([1, 0, 0, 0, 1, 1, 1, 0.0])
    assert calibration_error(scores, labels)[0] == pytest.approx(0)
    assert calibration_error(1 - scores, labels)[0] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (class_balanced_accuracy, reference.balanced_accuracy_score),
        (class_f1, lambda true, called: reference.f1_score(true, called, average="macro")),
    ],
)
def test_scores_over_classes_are_those_of_repeated_rows(ours, theirs):
    rng = np.random.default_rng(5)
    true = rng.choice(4, size=50, p=[0.5, 0.3, 0.15, 0.05])
    called = np.where(rng.random(50) < 0.6, true, rng.integers(0, 3, size=50))  # class 3 is never called by chance
    weights = rng.integers(0, 3, size=(9, 50)).astype(float)
    weights[0, true == 3] = 0  # a draw without a class: it has no say
    expected = [theirs(np.repeat(true, row), np.repeat(called, row)) for row in weights.astype(int)]
    with np.errstate(all="raise"):
        np.testing.assert_allclose(ours(called, true, weights), expected, rtol=1e-12)
    np.testing.assert_allclose(ours(called, true)[0], theirs(true, called), rtol=1e-12)


def test_the_best_threshold_is_the_best_of_all_and_needs_both_classes():
    rng = np.random.default_rng(6)
    labels = (rng.random(40) < 0.2).astype(float)
    scores = 0.02 + 0.1 * rng.random(40) + 0.05 * labels  # far below one half
    found = best_threshold(scores, labels)
    assert found is not None
    reached = balanced_accuracy(scores, labels, threshold=found)[0]
    assert reached == max(balanced_accuracy(scores, labels, threshold=cut)[0] for cut in np.linspace(0, 0.2, 2001))
    assert reached > 0.6 > balanced_accuracy(scores, labels)[0]
    assert best_threshold(np.array([0.1, 0.2, 0.8, 0.9]), np.array([0, 0, 1, 1.0])) == pytest.approx(0.5)
    assert best_threshold(scores, np.zeros(40)) is None


def test_a_threshold_moves_what_is_called():
    scores, labels = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0, 0, 1, 1.0])
    assert f1(scores, labels)[0] == 0 and f1(scores, labels, threshold=0.25)[0] == 1
