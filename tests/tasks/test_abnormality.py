"""The probe on planted features, and the loss of the fine-tuned net."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from tomoglot.batches.batch import Batch
from tomoglot.recipes.recipe import Recipe
from tomoglot.tasks.abnormality import (
    AbnormalityNet,
    Config,
    pool_sequences,
    probe_result,
    score,
    sequence_means,
)
from tomoglot.tasks.embeddings import StoreEmbeddings
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


class Given(Recipe):
    """Encodes each sequence's volume as its first voxels, times a weight."""

    class Config(Recipe.Config):
        pass

    def __init__(self):
        super().__init__()
        self.config, self.sequences = self.Config(), ("flair", "t1w")
        self.weight = nn.Parameter(torch.ones(1))

    def losses(self, batch, *, progress):
        return {}

    def encode(self, batch):
        return batch.volumes[..., 0, 0] * self.weight


def test_scoring_what_was_learned_from_is_refused():
    with pytest.raises(ValueError, match="learns from"):
        score(Given(), SimpleNamespace(findings=("mass",)), Config(split="train"))
    with pytest.raises(ValueError, match="'probe' or 'finetune'"):
        Config(mode="magic")


def test_unknown_labels_have_no_say_in_the_loss():
    torch.manual_seed(0)
    net = AbnormalityNet(Given(), 4, ("a", "b"))
    nn.init.normal_(net.head.weight)
    batch = Batch(
        volumes=torch.randn(3, 2, 4, 1, 1),
        acquired=torch.tensor([[True, False], [True, True], [False, True]]),
        sequences=("flair", "t1w"),
        affine=torch.eye(4).expand(3, 4, 4),
        studies=("1", "2", "3"),
        subjects=torch.arange(3),
        reports=(None, None, None),
        labels=torch.tensor([[1.0, 0], [0, 1], [1, 1]]),
        labelled=torch.tensor([[True, False], [True, True], [False, False]]),
        findings=("a", "b"),
    )
    before = net.losses(batch, progress=0.0)["bce"]
    batch.labels[0, 1] = 1.0
    assert torch.equal(before, net.losses(batch, progress=0.0)["bce"])
    batch.volumes[0, 1] = 99.0
    assert torch.equal(before, net.losses(batch, progress=0.0)["bce"]), "a missing sequence was read"
    batch.labels[0, 0] = 0.0
    assert not torch.equal(before, net.losses(batch, progress=0.0)["bce"])
    batch.labelled[:] = False
    net.losses(batch, progress=0.0)["bce"].backward()
    assert net.head.weight.grad.abs().sum() == 0
