"""Labels and reports tell of whole studies: what was trained on crops is shown whole fields, and a result says it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from whole_fields import WholeFields, make_row

from tomoglot.batches.loader import LoaderConfig
from tomoglot.checkpoint import Card, Loaded
from tomoglot.encoders.plain_conv import PlainConv
from tomoglot.recipes import brainmvp
from tomoglot.store.plan import Plan
from tomoglot.tasks.abnormality import Config, score
from tomoglot.tasks.embeddings import opened, seen_note

FIELD = (12, 12, 12)


def rows(*shapes):
    return [make_row(f"s{at}", sequences=("t1w",), shape=shape) for at, shape in enumerate(shapes)]


def loaded(crop):
    recipe = brainmvp.tiny().but(vision=PlainConv.Config(widths=(8, 16), blocks=(0, 0), groups=4))
    card = Card(
        tomoglot="0",
        recipe=recipe,
        plan=Plan(),
        crop_voxels=crop,
        sequences=("t1w",),
        store_digest="",
        split_digest="",
        step=1,
        steps=1,
        simulated=True,
        salt="",
        subjects=(),
    )
    torch.manual_seed(0)
    return Loaded(recipe=recipe.build(("t1w",)).eval(), card=card, folder=Path())


@pytest.mark.parametrize(
    ("crop", "shapes", "read"),
    [
        ((8, 8, 8), [FIELD, FIELD], FIELD),
        ((8, 16, 12), [FIELD], (12, 16, 12)),
        ((16, 16, 16), [FIELD], (16, 16, 16)),
        ((8, 8, 8), [FIELD, (10, 12, 12)], (8, 8, 8)),
        (None, [FIELD], None),
    ],
)
def test_a_checkpoint_is_shown_whole_fields_and_no_less_than_its_crop(crop, shapes, read):
    assert opened(loaded(crop), WholeFields(rows(*shapes), {}), None)[1].crop_voxels == read


def test_a_setting_is_kept_and_a_result_says_what_is_not_read():
    model, store = loaded((8, 8, 8)), WholeFields(rows(FIELD, FIELD), {})
    asked = LoaderConfig(crop_voxels=(8, 12, 12))
    assert opened(model, store, asked)[1] is asked
    (note,) = [note for note in seen_note(model, store, "test", asked) if "MIDDLE" in note]
    assert note.startswith("ONLY THE MIDDLE IS READ: 8 x 12 x 12 voxels of fields of up to 12 x 12 x 12")
    (note,) = [note for note in seen_note(model, store, "test", opened(model, store, None)[1]) if "whole" in note]
    assert "trained on crops of 8 x 8 x 8" in note
    whole = loaded(None)
    assert not [note for note in seen_note(whole, store, "test", LoaderConfig()) if "crops" in note or "READ" in note]


def test_a_finding_outside_the_middle_is_found():
    """Bright in a corner that the crop of the training, which lies in the middle, does not hold."""
    rng = np.random.default_rng(0)
    told, fields = [], {}
    for number in range(60):
        sick, key = number % 2, f"s{number}"
        voxels = rng.normal(100, 10, FIELD)
        voxels[:3, :3, :3] += 200 * sick
        fields[key, "t1w"] = voxels.astype(np.int16)
        split = ("train", "val", "test")[number // 2 % 3]
        told.append(make_row(key, sequences=("t1w",), shape=FIELD, split=split, labels={"mass": float(sick)}))
    result = score(loaded((6, 6, 6)), WholeFields(told, fields), Config(mode="probe", draws=50, controls=False))
    assert result.score(metric="auroc").value > 0.9
