"""The one-pass intensity rule against its definition in words."""

import numpy as np
import pytest

from tomoglot.batches.intensity import SLAB_VOXELS, apply_intensity
from tomoglot.store.catalogue import Intensity
from tomoglot.store.plan import Plan

INTENSITY = Intensity(
    scale=0.25, offset=-10.0, mean=40.0, std=30.0, percentiles={"1": 2.0, "50": 60.0, "99": 120.0}, foreground=0.5
)


def in_words(stored, intensity, plan):
    real = stored.astype(np.float64) * intensity.scale + intensity.offset
    if plan.intensity == "zscore":
        scaled = np.clip((real - intensity.mean) / intensity.std, -plan.clip_zscore, plan.clip_zscore)
        return np.where(real == 0, 0, scaled)
    low, high = plan.window_hu
    if plan.intensity == "percentile":
        low, high = (intensity.percentiles[f"{rank:g}"] for rank in plan.percentiles)
    return np.clip((real - low) / (high - low), 0, 1)


@pytest.mark.parametrize(
    "plan",
    [
        Plan(intensity="zscore"),
        Plan(intensity="zscore", clip_zscore=0.7),
        Plan(intensity="percentile"),
        Plan(intensity="percentile", percentiles=(50.0, 99.0)),
        Plan(intensity="window", window_hu=(-20.0, 80.0)),
    ],
)
def test_the_rule_is_its_definition(plan):
    rng = np.random.default_rng(0)
    stored = rng.integers(-100, 700, (50, 41, 40), dtype=np.int16)
    assert stored.size > SLAB_VOXELS and (stored == 40).any()
    out = np.full(stored.shape, np.nan, np.float32)
    assert apply_intensity(stored, INTENSITY, plan, out=out) is out
    np.testing.assert_allclose(out, in_words(stored, INTENSITY, plan), atol=2e-6)


def test_background_stays_exactly_zero_although_the_mean_is_not():
    stored = np.array([[[40, 41]]], np.int16)
    out = np.empty(stored.shape, np.float32)
    apply_intensity(stored, INTENSITY, Plan(), out=out)
    assert out[0, 0, 0] == 0 and out[0, 0, 1] < -1


def test_a_foreground_of_one_value_becomes_zero():
    flat = INTENSITY.model_copy(update={"offset": 0.0, "mean": 10.0, "std": 0.0})
    out = np.empty((1, 1, 2), np.float32)
    apply_intensity(np.array([[[0, 40]]], np.int16), flat, Plan(), out=out)
    assert out.tolist() == [[[0.0, 0.0]]]


def test_a_percentile_that_the_catalogue_lacks_is_refused():
    with pytest.raises(ValueError, match=r"wants percentile 5, the catalogue holds 1, 50, 99"):
        apply_intensity(
            np.zeros((1, 1, 1), np.int16),
            INTENSITY,
            Plan(intensity="percentile", percentiles=(5.0, 99.0)),
            out=np.empty((1, 1, 1), np.float32),
        )
