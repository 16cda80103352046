"""Scores of a heat map are their definitions, and their chance levels what shuffled maps get."""

import numpy as np
import pytest

from tomoglot.tasks.maps.blind_maps import MeanMaps, middle_map, middle_mm
from tomoglot.tasks.maps.heat_maps import METRICS, HeatTable, compare_tables, score_heat, score_tables

SHAPE = (5, 4, 3)
SPACING = (2.0, 3.0, 4.0)


def drawn(seed=0):
    rng = np.random.default_rng(seed)
    heat = rng.normal(size=SHAPE)
    region, body = rng.random(SHAPE) < 0.2, rng.random(SHAPE) < 0.8
    region[2, 2, 1] = True
    return heat, region, body


def score(heat, region, body, **changes):
    return score_heat(heat, region, body=body, spacing_mm=SPACING, **changes)


def in_words(heat, region, body, tolerance_mm=0.0):
    """Voxel by voxel."""
    voxels = [at for at in np.ndindex(SHAPE) if body[at] or region[at]]
    lesion = [at for at in voxels if region[at]]

    def away_mm(at):
        return min(np.linalg.norm((np.array(at) - np.array(other)) * SPACING) for other in lesion)

    highest = max(heat[at] for at in voxels)
    top = [at for at in voxels if heat[at] == highest]
    positive = {at: max(heat[at], 0) / highest if highest > 0 else 0.0 for at in voxels}
    inside = np.array([heat[at] for at in lesion])
    outside = np.array([heat[at] for at in voxels if not region[at]])
    total = sum(positive.values())
    return {
        "pointing_game": sum(away_mm(at) <= tolerance_mm for at in top) / len(top),
        "soft_dice": 2 * sum(positive[at] for at in lesion) / (total + len(lesion)),
        "contrast_to_noise": (inside.mean() - outside.mean()) / np.sqrt(inside.var() + outside.var()),
        "share_inside": sum(positive[at] for at in lesion) / total,
    }


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("tolerance_mm", [0.0, 3.0, 5.0])
def test_scores_are_their_definitions(seed, tolerance_mm):
    heat, region, body = drawn(seed)
    found = score(heat, region, body, tolerance_mm=tolerance_mm).found
    assert found == pytest.approx(in_words(heat, region, body, tolerance_mm))
    assert tuple(found) == METRICS


def test_ties_of_the_maximum_are_shared_out_exactly():
    heat, region, body = drawn()
    body = np.ones(SHAPE, dtype=bool)
    places = [*np.argwhere(region)[:2], *np.argwhere(~region)[:3]]
    for place in places:
        heat[tuple(place)] = 9.0
    assert score(heat, region, body).found["pointing_game"] == pytest.approx(2 / 5)


def test_a_maximum_near_the_lesion_is_a_hit_only_within_the_tolerance():
    heat, region = np.zeros(SHAPE), np.zeros(SHAPE, dtype=bool)
    region[1, 1, 1], heat[1, 2, 1] = True, 1.0  # 3 mm further along j
    body = np.ones(SHAPE, dtype=bool)
    hits = [score(heat, region, body, tolerance_mm=mm).found["pointing_game"] for mm in (0.0, 2.9, 3.0)]
    assert hits == [0.0, 0.0, 1.0]
    # Chance rises with the tolerance: within 3 mm lie the lesion, two voxels along i (2 mm) and two along j.
    assert score(heat, region, body, tolerance_mm=3.0).chance["pointing_game"] == pytest.approx(5 / 60)


@pytest.mark.parametrize("tolerance_mm", [0.0, 3.0])
def test_chance_is_what_the_values_get_when_dealt_out_at_random(tolerance_mm):
    heat, region, body = drawn(3)
    body |= region
    rng, sums = np.random.default_rng(1), dict.fromkeys(METRICS, 0.0)
    for _ in range(1500):
        shuffled = heat.copy()
        shuffled[body] = rng.permutation(heat[body])
        for metric, value in score(shuffled, region, body, tolerance_mm=tolerance_mm).found.items():
            sums[metric] += value / 1500
    chance = score(heat, region, body, tolerance_mm=tolerance_mm).chance
    assert sums == pytest.approx(chance, abs=0.03)
    assert sums["soft_dice"] == pytest.approx(chance["soft_dice"], abs=0.01)


def test_a_map_that_says_nothing_scores_its_chance():
    _, region, body = drawn()
    for level in (0.0, 2.5):
        scored = score(np.full(SHAPE, level), region, body)
        assert scored.found == pytest.approx(scored.chance)


def test_the_lesion_itself_is_the_best_map():
    _, region, body = drawn()
    found = score(region.astype(float), region, body).found
    assert (found["pointing_game"], found["soft_dice"], found["share_inside"]) == (1, 1, 1)


def test_what_lies_outside_the_body_does_not_count():
    heat, region, body = drawn()
    louder = np.where(body | region, heat, 100.0)
    assert score(louder, region, body) == score(heat, region, body)
    # The region counts even where the body was not seen: a mask may reach into what was not imaged.
    assert score(heat, region, body & ~region) == score(heat, region, body)


def test_what_cannot_be_scored_is_refused():
    heat, region, body = drawn()
    for bad in (np.zeros(SHAPE, dtype=bool), np.ones(SHAPE, dtype=bool)):
        with pytest.raises(ValueError, match="neither empty nor the whole body"):
            score(heat, bad, body)
    with pytest.raises(ValueError, match="not finite"):
        score(np.where(region, np.nan, heat), region, body)
    with pytest.raises(ValueError, match="a region of"):
        score(heat[1:], region, body)


def tables(values, subjects=None):
    """Two findings; every metric gets the same values; None where a study lacks the finding."""
    rows = [
        {name: dict.fromkeys(METRICS, value) for name, value in zip("ab", row, strict=True) if value is not None}
        for row in values
    ]
    return HeatTable.of(rows, findings=("a", "b"), subjects=subjects or list(range(len(rows))))


def test_macro_is_the_mean_over_findings_of_the_means_over_studies():
    table = tables([(0.0, None), (1.0, 0.2), (None, None), (0.5, 0.4)])
    scores = {(score.name, score.metric): score for score in score_tables(table, each=True, draws=200)}
    assert scores["a", "soft_dice"].value == pytest.approx(0.5)
    assert scores["b", "soft_dice"].value == pytest.approx(0.3)
    macro = scores["macro", "pointing_game"]
    assert macro.value == pytest.approx(0.4) and macro.low < 0.4 < macro.high
    assert (macro.subjects, macro.studies) == (3, 3)
    assert scores["b", "soft_dice"].prevalence == pytest.approx(0.5)


def test_subjects_are_drawn_and_not_studies():
    values = [(0.1 * (number % 7), 0.1 * (number % 5)) for number in range(40)]
    alone = score_tables(tables(values), draws=400)[0]
    twice = score_tables(tables(values * 2, subjects=[*range(40)] * 2), draws=400)[0]
    assert (twice.low, twice.high) == pytest.approx((alone.low, alone.high))


def test_maps_are_compared_where_both_arms_have_one():
    ours = tables([(0.9, 0.8)] * 12)
    worse = tables([(0.1, None)] * 6 + [(None, 0.4)] * 6)
    found = {compared.metric: compared for compared in compare_tables(ours, {"other": worse}, draws=300)}
    assert found["soft_dice"].value == pytest.approx(0.6)
    assert found["soft_dice"].p_holm < 0.05
    assert set(found) == set(METRICS)


def test_the_middle_map_falls_with_the_distance_in_mm():
    body = np.zeros((9, 5, 3), dtype=bool)
    body[2:7, 1:4] = True
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    affine[:3, 3] = (-7, 1, 2)
    np.testing.assert_allclose(middle_mm(body, affine), affine[:3, :3] @ (4, 2, 1) + affine[:3, 3])
    near = middle_map(body, affine)
    assert np.unravel_index(near.argmax(), near.shape) == (4, 2, 1)
    farthest_mm = np.linalg.norm((4, 3, 4))
    assert near[4, 2, 0] == pytest.approx(1 - 4 / farthest_mm)
    assert near[6, 3, 2] == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="no body"):
        middle_mm(np.zeros((2, 2, 2), dtype=bool), affine)


def test_the_mean_map_is_that_of_all_other_subjects_wherever_their_bodies_lie():
    """Bodies stand at other places of their fields; the bright spot is always 16 mm to the right of their middle."""
    means, cases = MeanMaps(reach_mm=80.0), []
    for number, shift in enumerate((0, 3, 5)):
        body, heat = np.zeros((24, 16, 16), dtype=bool), np.zeros((24, 16, 16), dtype=np.float32)
        body[4 + shift : 13 + shift, 4:13, 4:13] = True
        # The third subject's spot lies elsewhere: what it adds to the others' means must not come back to itself.
        heat[(12 + shift, 8, 8) if number < 2 else (8 + shift, 8, 12)] = 5.0 * (number + 1)
        affine = np.diag([4.0, 4.0, 4.0, 1.0])
        affine[:3, 3] = number * 11.0
        cases.append({"body": body, "affine": affine})
        means.add("mass", number, heat, **cases[-1])
    assert means.of_others("infarct", 0, **cases[0]) is None
    told = means.of_others("mass", 2, **cases[2])
    assert np.unravel_index(told.argmax(), told.shape) == (12 + 5, 8, 8)
    assert told[8 + 5, 8, 12] == pytest.approx(0, abs=1e-3)
    # To the first subject the second one's spot and the third one's are told, each at the same height.
    told = means.of_others("mass", 0, **cases[0])
    assert told[12, 8, 8] == pytest.approx(told[8, 8, 12], rel=1e-2)
