"""A trained network is kept, used again, adapted, and refused where it does not fit."""

from pathlib import Path

import pytest
from test_segmentation import QUICK, BlobRecipe, write_blobs

from tomoglot.store.reader import Store
from tomoglot.tasks.heads.network import read_card
from tomoglot.tasks.segmentation import Config, score


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store.open(write_blobs(tmp_path_factory.mktemp("blobs")))


@pytest.fixture(scope="module")
def kept(store, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return score(BlobRecipe(), store, QUICK.but(controls=False), out=out), out / "network"


def test_a_kept_network_predicts_what_it_predicted(kept, store):
    first, folder = kept
    again = score(BlobRecipe(), store, QUICK.but(controls=False, network=folder, steps=0))
    assert [row.measures for row in again.predictions] == [row.measures for row in first.predictions]
    assert any("goes on from the trained network" in note for note in again.notes)


def test_a_network_is_trained_further_and_keeps_account_of_its_subjects(kept, store, tmp_path):
    _, folder = kept
    more = QUICK.but(controls=False, network=folder, steps=2, learning_rate=1e-4)
    short = score(BlobRecipe(), store, more, out=tmp_path).score("plaque", metric="dice")
    assert short.value > 0.7, "two steps from nothing reach no such score"
    card = read_card(tmp_path / "network")
    assert card.count_seen({f"sub-{number:02d}" for number in range(12)}) == 12
    assert card.count_seen({"sub-12", "sub-20"}) == 0
    assert card.simulated and card.salt == read_card(folder).salt


def test_a_network_that_saw_the_scored_subjects_is_told_on(kept, store, monkeypatch):
    _, folder = kept
    swapped = {"train": "test", "test": "train"}
    rows = tuple(row.model_copy(update={"split": swapped.get(row.split, row.split)}) for row in store.rows)
    from tomoglot.tasks.labels import PartOfStore

    result = score(BlobRecipe(), PartOfStore(store, rows), QUICK.but(controls=False, network=folder, steps=0))
    assert any(note.startswith("LEAK") and " 12 of " in note for note in result.notes)


def test_what_does_not_fit_is_refused(kept, store, tmp_path):
    _, folder = kept
    base = QUICK.but(controls=False, network=folder, steps=0)
    with pytest.raises(ValueError, match="its regions are"):
        score(BlobRecipe(), store, base.but(regions=("plaque",)))
    with pytest.raises(ValueError, match="its sequences are"):
        score(BlobRecipe(), store, base.but(sequences=("flair",)))
    with pytest.raises(ValueError, match=r"no network\.json here"):
        score(BlobRecipe(), store, base.but(network=tmp_path))
    damaged = tmp_path / "network"
    damaged.mkdir()
    for file in folder.iterdir():
        (damaged / file.name).write_bytes(file.read_bytes()[: 1000 if file.suffix == ".safetensors" else None])
    with pytest.raises(ValueError, match="do not fit"):
        score(BlobRecipe(), store, base.but(network=damaged))


def test_predicting_alone_needs_a_network():
    with pytest.raises(ValueError, match="steps 0 only predicts"):
        Config(steps=0, controls=False)
    with pytest.raises(ValueError, match="steps 0 only predicts"):
        Config(steps=0, network=Path("somewhere"))
