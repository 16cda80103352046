"""Embedding a split once: what was embedded is given again for equal weights, and for nothing else."""

import numpy as np
import pytest
import torch
from two_organs import LOADER, make_recipe, make_store

from tomoglot.store.reader import Store
from tomoglot.tasks import embeddings
from tomoglot.tasks.abnormality import Config
from tomoglot.tasks.compare import compare_pretraining
from tomoglot.tasks.embeddings import embed_split, embedded_once


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("organs"))


@pytest.fixture
def passes(monkeypatch):
    passes, real = [], embeddings.embed_store

    def counted(recipe, loader, **options):
        passes.append(recipe)
        return real(recipe, loader, **options)

    monkeypatch.setattr(embeddings, "embed_store", counted)
    return passes


def test_the_same_weights_and_split_are_embedded_once(store, passes):
    recipe = make_recipe()
    with embedded_once():
        first = embed_split(recipe, store, split="val", loader=LOADER)
        assert embed_split(recipe, store, split="val", loader=LOADER) is first
        assert len(passes) == 1
    again = embed_split(recipe, store, split="val", loader=LOADER)
    assert len(passes) == 2, "outside of it nothing is kept"
    np.testing.assert_array_equal(again.features, first.features)


def test_weights_of_any_kind_tell_models_apart(store, passes):
    """A counter without an axis, half precision, a flag: all are in a state that recipes may have."""
    recipe = make_recipe()
    recipe.register_buffer("seen", torch.tensor(3))
    recipe.register_buffer("halves", torch.ones(2, 2, dtype=torch.bfloat16))
    recipe.register_buffer("flag", torch.tensor([True]))
    with embedded_once():
        embed_split(recipe, store, split="val", loader=LOADER)
        embed_split(recipe, store, split="val", loader=LOADER)
        assert len(passes) == 1
        recipe.seen += 1
        embed_split(recipe, store, split="val", loader=LOADER)
    assert len(passes) == 2


def test_other_weights_splits_stores_and_questions_are_embedded_anew(store, passes):
    recipe = make_recipe()
    with embedded_once():
        before = embed_split(recipe, store, split="val", loader=LOADER)
        embed_split(recipe, store, split="test", loader=LOADER)
        embed_split(recipe, store, split="val", loader=LOADER, remove_image=True)
        embed_split(recipe, store, split="val", loader=LOADER, wanted="features")
        embed_split(recipe, store, split="val", loader=LOADER.but(crop_voxels=(8, 8, 8)))
        embed_split(recipe, Store.open(store.path), split="val", loader=LOADER)
        assert len(passes) == 6
        with torch.no_grad():
            next(recipe.parameters()).mul_(1.5)
        after = embed_split(recipe, store, split="val", loader=LOADER)
    assert len(passes) == 7 and not np.allclose(after.features, before.features)


def test_a_comparison_of_probes_embeds_each_arm_once_however_many_shares(store, passes):
    recipe = make_recipe(seed=1)
    config = Config(loader=LOADER, draws=20)
    result = compare_pretraining({"ours": recipe}, store, "abnormality", config, fractions=(0.5, 1.0), draws=20)
    assert len(passes) == 2 * 3, "train, val and test, of ours and of it from scratch"
    one = compare_pretraining({"ours": recipe}, store, "abnormality", config, fractions=(1.0,), draws=20)
    assert {score.value for score in one.scores} <= {score.value for score in result.scores}
