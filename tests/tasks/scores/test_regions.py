"""What is measured of a study, what an empty mask means, and how a threshold is chosen."""

import numpy as np
import pytest

from tomoglot.tasks.scores.regions import (
    THRESHOLDS,
    Measured,
    ThresholdChooser,
    choose_regions,
    compare_measured,
    mean_statistic,
    measure_region,
    score_measured,
)

GRID = {"spacing_mm": (2.0, 2.0, 2.5), "tolerance_mm": 2.5}


def box(*, at=2, shape=(10, 8, 8)):
    region = np.zeros(shape, dtype=bool)
    region[at : at + 3, 2:4, 2:4] = True
    return region


def test_a_perfect_prediction():
    found = measure_region(box(), box(), **GRID)
    assert found == {
        "volume_true_ml": 0.12,
        "volume_predicted_ml": 0.12,
        "dice": 1.0,
        "lesion_dice": 1.0,
        "lesion_f1": 1.0,
        "nsd": 1.0,
        "hd95_mm": 0.0,
    }


def test_a_missed_region_costs_all_and_a_false_one_counts_in_ml_alone():
    nothing = np.zeros_like(box())
    missed = measure_region(nothing, box(), **GRID)
    assert [missed[name] for name in ("dice", "nsd", "lesion_dice", "lesion_f1", "volume_predicted_ml")] == [0.0] * 5
    assert missed["hd95_mm"] == pytest.approx(np.sqrt(20**2 + 16**2 + 20**2))
    assert measure_region(box(), nothing, **GRID) == {"false_positive_ml": 0.12}
    assert measure_region(nothing, nothing, **GRID) == {"false_positive_ml": 0.0}


def test_the_threshold_is_the_best_of_all_by_the_slow_definition():
    rng = np.random.default_rng(0)
    true = rng.random((4, 2, 6, 6, 6)) < 0.2
    probabilities = (0.3 * true + rng.random(true.shape) * 0.6).astype(np.float32)
    probabilities[0, 0, 0, 0] = THRESHOLDS[7]  # equal to a threshold: called
    chooser = ThresholdChooser(2)
    for study in range(4):
        chooser.add(probabilities[study], true[study])
    for region, chosen in enumerate(chooser.choose()):
        dices = []
        for threshold in THRESHOLDS:
            called = probabilities[:, region] >= threshold
            dices.append(2 * (called & true[:, region]).sum() / (called.sum() + true[:, region].sum()))
        assert chosen == THRESHOLDS[int(np.argmax(dices))] and 0.05 < chosen < 0.95


def test_a_region_that_nobody_has_gets_no_threshold():
    chooser = ThresholdChooser(1)
    chooser.add(np.full((1, 2, 2, 2), 0.7, dtype=np.float32), np.zeros((1, 2, 2, 2), dtype=bool))
    assert chooser.choose() == [None]


def test_of_equal_thresholds_the_one_nearest_a_half_is_taken():
    true = np.zeros((1, 2, 2, 2), dtype=bool)
    true[0, 0] = True
    chooser = ThresholdChooser(1)
    chooser.add(np.where(true, 0.9, 0.2).astype(np.float32), true)
    assert chooser.choose() == [0.5]


def test_default_regions_are_those_of_the_training_masks_and_unknown_ones_are_refused():
    assert choose_regions(None, {0, 3, 4}) == {"whole": (1, 2, 3, 7, 8), "plaque": (4,)}
    assert choose_regions(None, {0, 9, 26}) == {"hcc": (9,), "pleural_effusion": (26,)}, "of liver and chest as well"
    assert choose_regions(("plaque",), {4}) == {"plaque": (4,)}
    assert choose_regions({"mine": (3, 4)}, {4}) == {"mine": (3, 4)}
    with pytest.raises(ValueError, match="no training mask holds infarct"):
        choose_regions(("infarct",), {0, 4})
    with pytest.raises(ValueError, match="did you mean 'plaque'"):
        choose_regions(("plak",), {4})
    with pytest.raises(ValueError, match="no region to learn"):
        choose_regions(None, {0})


def measured(shift=0.0):
    rng = np.random.default_rng(3)
    rows = []
    for study in range(24):
        row = {}
        for region, share in (("whole", 0.9), ("plaque", 0.4)):
            value = float(np.clip(rng.random() * 0.4 + shift, 0, 1))
            there = {"dice": value, "lesion_f1": value / 2, "volume_true_ml": 3.0}
            row[region] = there if study % 10 < share * 10 else {"false_positive_ml": 1.5}
        rows.append(row)
    subjects = [study // 2 for study in range(24)]
    return Measured.of(rows, regions=("whole", "plaque"), studies=[str(n) for n in range(24)], subjects=subjects)


def test_scores_are_means_over_studies_with_the_region_and_macro_the_mean_over_regions():
    found = measured()
    by_name = {(score.name, score.metric): score for score in score_measured(found, draws=200)}
    dices = found.values["dice"]
    whole, plaque = (dices[np.isfinite(dices[:, at]), at] for at in (0, 1))
    assert by_name["whole", "dice"].value == pytest.approx(whole.mean())
    assert by_name["macro", "dice"].value == pytest.approx((whole.mean() + plaque.mean()) / 2)
    assert by_name["plaque", "false_positive_ml"].studies == 24 - len(plaque)
    assert by_name["plaque", "dice"].prevalence == pytest.approx(len(plaque) / 24)
    assert by_name["whole", "dice"].subjects <= 12 < by_name["whole", "dice"].studies
    assert all(score.low <= score.value <= score.high for score in by_name.values())
    assert ("whole", "nsd") not in by_name, "what nobody measured has no score"


def test_the_statistic_for_a_draw_is_the_mean_over_repeated_studies():
    table = measured().values["dice"]
    weights = np.random.default_rng(0).integers(0, 3, (5, len(table))).astype(float)
    weights[4] = np.where(np.isfinite(table[:, 1]), 0, weights[4])  # a draw without the second region
    for row, value in zip(weights, mean_statistic(table)(weights), strict=True):
        repeated = np.repeat(table, row.astype(int), axis=0)
        columns = [column[np.isfinite(column)].mean() for column in repeated.T if np.isfinite(column).any()]
        assert value == pytest.approx(np.mean(columns))


def test_a_better_arm_is_told_from_a_worse_one_and_equal_ones_are_not():
    better, worse = measured(0.3), measured(0.0)
    found = {(row.name, row.metric, row.against): row for row in compare_measured(better, {"low": worse}, draws=500)}
    assert found["macro", "dice", "low"].low > 0 and found["macro", "dice", "low"].p_holm < 0.05
    assert found["plaque", "dice", "low"].value == pytest.approx(0.3)
    assert all(row.p_holm == 1 for row in compare_measured(worse, {"same": worse}, draws=100))


def test_what_was_measured_of_one_study_is_kept():
    record = measured().record(0)
    assert record["whole/lesion_f1"] == pytest.approx(record["whole/dice"] / 2) and "whole/nsd" not in record
