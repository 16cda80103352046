"""The probe on planted features, and fine-tuning on a tiny simulated store of two organs."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from two_organs import LOADER, QUICK, SEQUENCES, make_recipe, make_store

from tomoglot.encoders.plain_conv import PlainConv
from tomoglot.recipes import medmap
from tomoglot.tasks.abnormality import Config, finetune, score
from tomoglot.tasks.embeddings import StoreEmbeddings, embed_split
from tomoglot.tasks.heads.detector import load_detector
from tomoglot.tasks.heads.probe import pool_sequences, probe_result, sequence_means
from tomoglot.tasks.task import IMAGE_REMOVED, SCRATCH


def planted(signal, *, studies=90, seed=0):
    rng = np.random.default_rng(seed)
    labels = (rng.random((studies, 2)) < 0.4).astype(np.float32)
    features = rng.normal(size=(studies, 3, 6))
    features[:, :, :2] += signal * labels[:, None, :]
    acquired = rng.random((studies, 3)) < 0.7
    acquired[:, 0] |= ~acquired.any(axis=1)
    return StoreEmbeddings(
        features=np.where(acquired[:, :, None], features, 0).astype(np.float32),
        aligned=None,
        acquired=acquired,
        labels=labels,
        labelled=rng.random((studies, 2)) < 0.9,
        subjects=np.arange(studies),
        studies=tuple(str(index) for index in range(studies)),
        findings=("infarct", "mass"),
        sequences=("flair", "t1w", "t2w"),
    )


def splits(signal):
    return {name: planted(signal, seed=seed) for seed, name in enumerate(("train", "val", "test"))}


@pytest.mark.parametrize("pooling", ["mean_max", "concat"])
def test_the_probe_finds_what_is_planted_and_beats_both_controls(pooling):
    result = probe_result(splits(2.0), splits(0.0), pooling=pooling, draws=200)
    assert result.score().low > 0.8
    assert result.score(arm=SCRATCH).high < 0.75 and result.score(arm=IMAGE_REMOVED).high < 0.75
    assert len(result.comparisons) == 2 and all(row.p_holm < 0.05 for row in result.comparisons)
    assert result.score("mass", metric="brier").value < 0.25


def test_missing_sequences_do_not_enter_the_mean_the_maximum_or_the_fill():
    found = planted(1.0)
    pooled = pool_sequences(found, pooling="mean_max")
    for study in range(6):
        there = found.features[study][found.acquired[study]]
        np.testing.assert_allclose(pooled[study], np.concatenate([there.mean(axis=0), there.max(axis=0)]), rtol=1e-5)
    fill = sequence_means(found)
    np.testing.assert_allclose(fill[1], found.features[found.acquired[:, 1], 1].mean(axis=0), rtol=1e-5)
    study = int(np.flatnonzero(~found.acquired[:, 1])[0])
    np.testing.assert_allclose(pool_sequences(found, pooling="concat", fill=fill)[study, 6:12], fill[1])


def test_a_val_split_of_one_class_is_said():
    sides = splits(2.0)
    sides["val"].labels[:] = 0
    assert any("not chosen" in note for note in probe_result(sides, None, draws=20).notes)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("two_organs"), studies=72)


def settings(**changes) -> Config:
    small = {"width": 16, "heads": 2, "layers": 1, "token_stride": 4, "text": "learned", "dropout": 0.0}
    return Config(mode="finetune", loader=LOADER, schedule=QUICK, draws=40, **small).but(**changes)


def test_the_probe_asks_the_findings_that_are_named():
    sides = splits(2.0)
    result = probe_result(sides, None, findings=("mass",), draws=20)
    assert {row.name for row in result.scores} == {"macro", "mass"}
    assert set(result.predictions[0].probabilities) == {"mass"}


def test_scoring_what_was_learned_from_is_refused():
    with pytest.raises(ValueError, match="learns from"):
        score(make_recipe(), SimpleNamespace(findings=("mass",)), Config(split="train"))
    with pytest.raises(ValueError, match="'probe' or 'finetune'"):
        Config(mode="magic")


def test_settings_that_do_not_go_together_are_refused(store):
    for changes in ({"fusion": "cct"}, {"aggregation": True}, {"subsets": True}, {"missing": (0.5,)}):
        with pytest.raises(ValueError, match="need mode='finetune'"):
            Config(**changes)
    with pytest.raises(ValueError, match="two findings or more"):
        Config(mode="finetune", form="one_of")
    with pytest.raises(ValueError, match="between 0 and 1"):
        settings(missing=(1.5,))
    with pytest.raises(ValueError, match="labels no fracture; it labels cyst, hcc"):
        score(make_recipe(), store, settings(findings="fracture, hcc"))
    with pytest.raises(
        ValueError, match="no study to learn from is infarct, normal, mass, hcc alone of infarct, normal, mass, hcc"
    ):
        score(make_recipe(), store, settings(form="one_of", findings=("infarct", "normal", "mass", "hcc")))


@pytest.mark.parametrize("net", [{}, {"fusion": "cct", "aggregation": True}], ids=["plain", "fused"])
def test_fine_tuning_finds_what_is_there_in_both_organs_and_not_without_the_image(store, net):
    recipe = make_recipe()
    before = {name: value.clone() for name, value in recipe.state_dict().items()}
    result = score(recipe, store, settings(**net))
    assert result.score().low > 0.65 > result.score(arm=IMAGE_REMOVED).value
    assert result.simulated and result.task == "abnormality-finetune"
    assert {row.name for row in result.scores} == {
        "macro",
        "cyst",
        "hcc",
        "infarct",
        "mass",
        "brain normal",
        "liver normal",
        "brain: macro",
        "liver: macro",
    }
    for metric in ("average_precision", "balanced_accuracy", "f1", "brier", "calibration_error"):
        assert result.score(metric=metric).metric == metric and result.score(metric=metric, arm=SCRATCH)
    assert {row.against for row in result.comparisons} == {SCRATCH, IMAGE_REMOVED}
    assert "thresholds of the val split" in " ".join(result.notes)
    for name, value in recipe.state_dict().items():
        assert torch.equal(value, before[name]), "the recipe that was given has changed"
    assert not result.subsets and {"brain normal", "infarct"} <= set().union(*(p.labels for p in result.predictions))


def test_subsets_losses_and_the_saved_detector_come_from_one_training(store, tmp_path):
    asked = settings(fusion="cct", controls=False, subsets=True, missing=(0.5,), drop_sequence_probability=0.3, seed=1)
    result = score(make_recipe(), store, asked, out=tmp_path)
    assert {(row.score.name, row.sequences) for row in result.subsets} == {
        (f"{organ}: macro", subset)
        for organ, own in (("brain", "flair"), ("liver", "arterial"))
        for subset in ((own,), ("t2w",), tuple(sorted((own, "t2w"))))
    }
    assert all(row.left_out > 0 for row in result.subsets if len(row.sequences) == 1)
    assert result.score("brain: macro, flair only").value > 0.7
    assert result.score("liver: macro, 50 % of sequences hidden").studies == 9
    net = load_detector(tmp_path / "detector")
    card = json.loads((tmp_path / "detector" / "detector.json").read_text())
    assert net.recipe.sequences == SEQUENCES and card["loader"]["drop_sequence_probability"] == 0.3
    learned = {row.subject for row in store.rows if row.split == "train"}
    assert len(card["subjects"]) == len(learned) and not learned & set(card["subjects"])


def test_classes_that_exclude_each_other_leave_other_studies_out(store):
    result = score(
        make_recipe(), store, settings(form="one_of", findings="cyst,hcc,normal", aggregation=True, controls=False)
    )
    assert result.studies == 9 and result.score(metric="accuracy").value > 0.7
    assert result.score().value > 0.8
    assert {row.name for row in result.scores} == {"macro", "cyst", "hcc", "normal"}
    assert any("36 not labelled" in note for note in result.notes)
    for row in result.predictions:
        assert sum(row.probabilities.values()) == pytest.approx(1) and sum(row.labels.values()) == 1


def test_training_is_a_function_of_the_seed_and_both_arms_draw_the_same_new_weights(store):
    recipe, asked = make_recipe(), settings(fusion="cct", aggregation=True, dropout=0.2)
    short = QUICK.but(steps=2)
    nets = [finetune(recipe, store, short, loader=LOADER, settings=asked, seed=seed) for seed in (0, 0, 1)]
    for name, value in nets[0].state_dict().items():
        assert torch.equal(value, nets[1].state_dict()[name]), name
    assert not torch.equal(nets[0].cct.cls, nets[2].cct.cls)
    still = QUICK.but(steps=1, learning_rate=1e-9, warmup_steps=0, weight_decay=0.0)
    ours, fresh = (
        finetune(start, store, still, loader=LOADER, settings=asked) for start in (recipe, make_recipe(seed=5))
    )
    torch.testing.assert_close(ours.cct.cls, fresh.cct.cls, atol=1e-7, rtol=0)
    assert not torch.allclose(*(next(net.recipe.backbone().parameters()) for net in (ours, fresh)), atol=1e-3), (
        "the arms differ by the encoder"
    )


def test_sequences_that_no_training_held_are_said_and_read_where_an_adapter_is_shared(store):
    vision = PlainConv.Config(widths=(8, 16), blocks=(0, 0), groups=4)
    torch.manual_seed(0)
    config = medmap.tiny().but(vision=vision, bank="adapter")
    refusing = config.build(("t2w",)).eval()
    asked = Config(loader=LOADER, controls=False, draws=20)
    result = score(refusing, store, asked)
    left = [note for note in result.notes if note.startswith("NOT READ")]
    assert len(left) == 1 and "the checkpoint knows t2w." in left[0] and "studies)" in left[0]
    shared = config.but(unknown_sequences="shared").build(("t2w",)).eval()
    result = score(shared, store, asked)
    assert not [note for note in result.notes if note.startswith("NOT READ")]
    assert [note for note in result.notes if "adapter that all sequences share" in note and "t2w" not in note]
    found = embed_split(shared, store, split="test", loader=LOADER)
    assert found.sequences[0] == "t2w" and set(found.sequences) == set(store.sequences)
    assert all(np.abs(found.features[found.acquired[:, column], column]).max() > 0 for column in range(3))
    # What is fine-tuned has an encoder a sequence, and none for one that no training held.
    tuned = score(shared, store, settings(controls=False, **{"schedule.steps": 2}))
    assert [note for note in tuned.notes if note.startswith("NOT READ")]
