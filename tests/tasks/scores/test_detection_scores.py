"""Scores of findings by organ, thresholds of another split, and classes that exclude each other."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from tomoglot.tasks.scores.detection_scores import (
    by_organ,
    choose_thresholds,
    organs_of,
    result_of,
    score_classes,
    score_findings,
    split_normal,
)
from tomoglot.tasks.scores.metrics import accuracy, balanced_accuracy
from tomoglot.tasks.scores.scoring import Truth
from tomoglot.tasks.task import IMAGE_REMOVED, MODEL

FINDINGS = ("cyst", "hcc", "infarct", "mass", "normal")
STUDIES = 80


def two_organs(seed: int = 0) -> Truth:
    """Even studies are of the brain; livers are normal far more often."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((STUDIES, 5)) < 0.4).astype(np.float32)
    brain = np.arange(STUDIES) % 2 == 0
    labels[:, 4] = rng.random(STUDIES) < np.where(brain, 0.2, 0.8)
    labelled = np.ones((STUDIES, 5), dtype=bool)
    labelled[brain, :2] = False
    labelled[~brain, 2:4] = False
    return Truth(
        labels=labels,
        labelled=labelled,
        subjects=np.arange(STUDIES),
        findings=FINDINGS,
        studies=tuple(f"k{n}" for n in range(STUDIES)),
    )


def one_organ() -> Truth:
    truth = two_organs()
    return truth.rows(np.arange(STUDIES) % 2 == 0).columns(("infarct", "mass", "normal"))


def said(truth: Truth, *, signal: float = 2.0, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return 1 / (1 + np.exp(-(signal * (truth.labels - 0.5) + rng.normal(size=truth.labels.shape))))


def test_normal_is_a_finding_of_each_organ_so_telling_organs_apart_scores_nothing() -> None:
    truth = two_organs()
    organ_only = np.where((organs_of(truth) == "liver")[:, None], 0.8, 0.2) * np.ones(5)
    given, split = split_normal(organ_only, truth)
    assert split.findings == ("cyst", "hcc", "infarct", "mass", "brain normal", "liver normal")
    assert roc_auc_score(truth.labels[:, 4], organ_only[:, 4]) > 0.7
    for at, organ in ((4, "brain"), (5, "liver")):
        rows = organs_of(truth) == organ
        assert np.array_equal(split.labelled[:, at], rows)
        assert roc_auc_score(split.labels[rows, at], given[rows, at]) == 0.5
    result = result_of({MODEL: organ_only}, truth, task="t", draws=50)
    assert result.score().value == 0.5
    assert {name for row in result.predictions for name in row.labels} == set(split.findings)


def test_one_organ_is_left_as_it_is() -> None:
    truth = one_organ()
    given = said(truth)
    assert split_normal(given, truth)[1] is truth and by_organ(truth) == {}
    result = result_of({MODEL: given}, truth, task="t", draws=50)
    assert not [row.name for row in result.scores if ":" in row.name]
    assert [row.name for row in result.scores if row.metric == "brier"] == list(truth.findings), "as it was before"


def test_the_score_of_an_organ_is_the_mean_over_its_findings_in_its_studies() -> None:
    truth = two_organs()
    given = said(truth)
    result = result_of({MODEL: given, IMAGE_REMOVED: said(truth, signal=0.0)}, truth, task="t", draws=100)
    for organ, columns in (("brain", (2, 3, 4)), ("liver", (0, 1, 4))):
        rows = organs_of(truth) == organ
        each = [roc_auc_score(truth.labels[rows, at], given[rows, at]) for at in columns]
        row = result.score(f"{organ}: macro")
        assert row.value == pytest.approx(np.mean(each)) and row.subjects == STUDIES // 2
        assert row.low < row.value < row.high
        assert result.score(f"{organ}: macro", arm=IMAGE_REMOVED).value < row.low
    assert {row.name for row in result.comparisons} == {"macro", "brain: macro", "liver: macro"}
    assert all(row.p_holm >= row.p for row in result.comparisons)


def test_thresholds_of_another_split_decide_what_is_called_present() -> None:
    truth, other = one_organ(), two_organs(seed=5).rows(np.arange(STUDIES) % 2 == 0)
    other = other.columns(truth.findings)
    # Every probability is low, as where a finding is rare.
    given, chosen = said(truth) * 0.3, choose_thresholds(said(other, seed=6) * 0.3, other)
    assert set(chosen) == set(truth.findings) and max(chosen.values()) < 0.3
    scores = score_findings(given, truth, thresholds=chosen, draws=50)
    at_half = score_findings(given, truth, thresholds={}, draws=50)
    table = {(row.name, row.metric): row.value for row in scores}
    for at, name in enumerate(truth.findings):
        expected = balanced_accuracy(given[:, at], truth.labels[:, at], threshold=chosen[name])[0]
        assert table[name, "balanced_accuracy"] == pytest.approx(expected)
        assert table[name, "f1"] == pytest.approx(f1_score(truth.labels[:, at], given[:, at] >= chosen[name])) != 0
    each = [table[name, "balanced_accuracy"] for name in truth.findings]
    assert table["macro", "balanced_accuracy"] == pytest.approx(np.mean(each))
    assert table["macro", "balanced_accuracy"] > 0.6
    assert {row.value for row in at_half if row.metric == "balanced_accuracy"} == {0.5}
    single = other.labels.copy()
    single[:, 1] = 0
    assert "mass" not in choose_thresholds(said(other), Truth(**{**_fields(other), "labels": single}))


def _fields(truth: Truth) -> dict[str, object]:
    return {name: getattr(truth, name) for name in Truth.__slots__}


def test_classes_are_scored_one_against_the_rest_and_by_what_is_called() -> None:
    rng = np.random.default_rng(0)
    classes = np.arange(60) % 3
    truth = Truth(
        labels=np.eye(3)[classes],
        labelled=np.ones((60, 3), dtype=bool),
        subjects=np.arange(60),
        findings=("a", "b", "c"),
        studies=tuple(map(str, range(60))),
    )
    logits = 1.5 * np.eye(3)[classes] + rng.normal(size=(60, 3))
    given = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    table = {(row.name, row.metric): row.value for row in score_classes(given, truth, draws=50)}
    assert table["macro", "accuracy"] == pytest.approx(accuracy_score(classes, given.argmax(axis=1)))
    assert table["macro", "auroc"] == pytest.approx(roc_auc_score(classes, given, multi_class="ovr"))
    assert table["macro", "brier"] == pytest.approx(((given - truth.labels) ** 2).mean())
    top, right = given.max(axis=1), given.argmax(axis=1) == classes
    bins = np.clip((top * 10).astype(int), 0, 9)
    gaps = [abs(top[bins == at].mean() - right[bins == at].mean()) * (bins == at).mean() for at in np.unique(bins)]
    assert table["macro", "calibration_error"] == pytest.approx(sum(gaps))
    result = result_of({MODEL: given}, truth, task="t", form="one_of", draws=50)
    assert result.score(metric="accuracy").studies == 60


def test_accuracy_weighs_every_row_as_often_as_it_was_drawn() -> None:
    called, true = np.array([0, 1, 2, 2]), np.array([0, 1, 1, 2])
    weights = np.array([[1.0, 1, 1, 1], [0, 0, 3, 1]])
    np.testing.assert_allclose(accuracy(called, true, weights), [0.75, 0.25])
