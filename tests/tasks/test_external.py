"""A probe or detector that was kept is scored on another store as it is: the same numbers, and no new choice."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from whole_fields import WholeFields, make_row

from tomoglot.batches.loader import LoaderConfig
from tomoglot.checkpoint import Loaded
from tomoglot.encoders.plain_conv import PlainConv
from tomoglot.recipes import brainmvp
from tomoglot.schedule import Schedule
from tomoglot.store.plan import Plan
from tomoglot.tasks import abnormality, external
from tomoglot.tasks.embeddings import embed_split
from tomoglot.tasks.heads import kept_probe, probe
from tomoglot.tasks.heads.detector import read_card
from tomoglot.tasks.scores.scoring import truth_of
from tomoglot.tasks.task import IMAGE_REMOVED, MODEL

FIELD = (12, 12, 12)
SEQUENCES = ("t1w", "flair")
LOADER = LoaderConfig(workers=0)
QUICK = Schedule(steps=12, warmup_steps=2, learning_rate=1e-2, accelerator="cpu")


def make_store(seed, count, *, splits=("train", "val", "test"), findings=("mass", "blood"), first="s", order=SEQUENCES):
    """Mass is bright on the left, blood on the right; every fourth study lacks the second sequence."""
    rng = np.random.default_rng(seed)
    rows, fields = [], {}
    for number in range(count):
        has, key = {"mass": number % 2, "blood": number // 2 % 2, "rare": 0}, f"{first}{number}"
        sequences = order[: 1 if number % 4 == 3 else 2]
        for name in sequences:
            voxels = rng.normal(100, 10, FIELD)
            voxels[1:5, 3:9, 3:9] += 60 * has["mass"]
            voxels[7:11, 3:9, 3:9] -= 60 * has["blood"]
            fields[key, name] = voxels.astype(np.int16)
        labels = {name: float(has.get(name, number % 2)) for name in findings}
        split = splits[number // 4 % len(splits)]
        rows.append(make_row(key, sequences=sequences, shape=FIELD, split=split, labels=labels))
    return WholeFields(rows, fields)


@pytest.fixture(scope="module")
def recipe():
    torch.manual_seed(0)
    vision = PlainConv.Config(widths=(8, 16), blocks=(0, 0), groups=4)
    return brainmvp.tiny().but(vision=vision).build(SEQUENCES).eval()


@pytest.fixture(scope="module")
def there():
    """Where it was trained; it labels a finding that nobody has."""
    return make_store(0, 72, findings=("mass", "blood", "rare"))


@pytest.fixture(scope="module")
def elsewhere():
    return make_store(1, 40, splits=("test",), first="e", findings=("blood", "mass"))


@pytest.fixture(scope="module", params=["mean_max", "concat"])
def kept(request, recipe, there, tmp_path_factory) -> tuple[str, Path]:
    out = tmp_path_factory.mktemp(request.param)
    config = abnormality.Config(pooling=request.param, draws=50, controls=False, loader=LOADER)
    abnormality.score(recipe, there, config, out=out)
    return request.param, out / "probe"


def asked(head, **changes):
    return external.Config(head=head, draws=50, loader=LOADER, **changes)


def test_a_kept_probe_says_what_the_fitted_one_said(kept, recipe, there):
    pooling, folder = kept
    sides = {split: embed_split(recipe, there, split=split, loader=LOADER) for split in ("train", "val", "test")}
    found = []
    probe.probe_result(sides, None, pooling=pooling, draws=50, keep=found.append)
    (fitted,) = found
    fill = probe.sequence_means(sides["train"]) if pooling == "concat" else None
    expected = fitted.probe.predict(probe.pool_sequences(sides["test"], pooling=pooling, fill=fill))
    given = kept_probe.load_probe(folder).predict(sides["test"])
    np.testing.assert_allclose(given, expected, rtol=1e-9)
    rare = truth_of(sides["train"]).findings.index("rare")
    assert (given[:, rare] == 0).all(), "nobody had it, so its share is said"


def test_it_is_scored_on_every_study_of_another_store_and_trains_nothing(kept, recipe, elsewhere, monkeypatch):
    monkeypatch.setattr(probe, "fit_probe", None)
    result = external.score(recipe, elsewhere, asked(kept[1]))
    assert result.task == "external-probe" and result.studies == 40 and result.simulated
    macro = {row.arm: row.value for row in result.scores if row.name == "macro" and row.metric == "auroc"}
    assert macro[MODEL] > 0.9 and macro[IMAGE_REMOVED] == pytest.approx(0.5, abs=0.25)
    notes = " ".join(result.notes)
    assert "Not labelled here, so not asked: rare." in notes and "Nothing was trained or chosen" in notes
    assert "NOT HELD OUT" not in notes
    assert {name for p in result.predictions for name in p.probabilities} == {"mass", "blood"}


def test_concat_takes_columns_by_name_and_fills_what_the_store_lacks(kept, recipe, there):
    """A store that knows another sequence, in another order: nothing may slip by a column."""
    net = kept_probe.load_probe(kept[1])
    seen = embed_split(recipe, there, split="test", loader=LOADER)
    first, second = (seen.sequences.index(name) for name in ("t1w", "flair"))
    turned = replace(
        seen,
        features=seen.features[:, [second, first]],
        acquired=seen.acquired[:, [second, first]],
        sequences=("flair", "t1w"),
        aligned=None,
    )
    np.testing.assert_allclose(net.predict(turned), net.predict(seen), rtol=1e-6)
    alone = replace(
        seen, features=seen.features[:, [first]], acquired=seen.acquired[:, [first]], sequences=("t1w",), aligned=None
    )
    without = replace(seen, acquired=seen.acquired & (np.arange(2) == first))
    np.testing.assert_allclose(net.predict(alone), net.predict(without), rtol=1e-6)


def test_who_was_learned_from_is_said(kept, recipe, there):
    notes = " ".join(external.score(recipe, there, asked(kept[1], split="all")).notes)
    assert "NOT HELD OUT: the probe learned from 24 of the 72 subjects." in notes
    test_side = external.score(recipe, there, asked(kept[1], split="test", controls=False))
    assert "NOT HELD OUT" not in " ".join(test_side.notes) and test_side.studies == 24


def test_a_kept_detector_keeps_its_thresholds(recipe, there, elsewhere, tmp_path):
    config = abnormality.Config(
        mode="finetune", findings=("blood", "mass"), schedule=QUICK, draws=50, controls=False, loader=LOADER
    )
    trained = abnormality.score(recipe, there, config, out=tmp_path)
    folder = tmp_path / "detector"
    assert set(read_card(folder).thresholds) == {"blood", "mass"}
    again = external.score(recipe, there, asked(folder, split="test", controls=False))
    assert [(row.name, row.metric, row.value) for row in again.scores] == [
        (row.name, row.metric, row.value) for row in trained.scores
    ], "on the studies of its own test split it is the same score"
    notes = " ".join(external.score(recipe, elsewhere, asked(folder)).notes)
    assert "at the thresholds of the training's val split" in notes


def test_what_does_not_go_together_is_refused(kept, recipe, there, tmp_path):
    folder = kept[1]
    with pytest.raises(ValueError, match="external needs a head"):
        external.score(recipe, there, asked(None))
    with pytest.raises(ValueError, match=r"no probe\.json here; give the folder `probe`"):
        external.score(recipe, there, asked(tmp_path))
    with pytest.raises(ValueError, match="there is nothing to score"):
        external.score(recipe, make_store(2, 8, splits=("test",), findings=("rest",)), asked(folder))
    other = WholeFields(there.rows, there.fields, Plan(spacing_mm=(2.0, 2.0, 2.0)))
    with pytest.raises(ValueError, match="prepared otherwise"):
        external.score(recipe, other, asked(folder))
    wide = brainmvp.tiny().but(vision=PlainConv.Config(widths=(8, 32), blocks=(0, 0), groups=4)).build(SEQUENCES)
    with pytest.raises(ValueError, match="the probe was fitted on 16 features a sequence"):
        external.score(wide, there, asked(folder))
    card = SimpleNamespace(plan=there.plan, crop_voxels=None, weights_digest="another's")
    with pytest.raises(ValueError, match="fitted on the features of another checkpoint"):
        external.score(Loaded(recipe=recipe, card=card, folder=Path()), there, asked(folder))
    for name in ("probe.json", "weights.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes()[: None if name == "probe.json" else 300])
    with pytest.raises(ValueError, match="its weights do not fit its card"):
        external.score(recipe, there, asked(tmp_path))
