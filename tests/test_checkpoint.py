import hashlib
import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import tiny_run
from tomoglot.checkpoint import Card, Resume, latest, load_checkpoint, read_resume, save_checkpoint, subject_digests
from tomoglot.store.plan import Plan
from tomoglot.tasks.embeddings import seen_note

SEQUENCES = ("flair", "t1w")


def card(step=1, **changes):
    return Card(
        tomoglot="0.1.0",
        recipe=tiny_run.TinyRecipe.Config(width=4),
        plan=Plan(spacing_mm=(1.0, 1.0, 2.0)),
        crop_voxels=(8, 8, 8),
        sequences=SEQUENCES,
        store_digest="s",
        split_digest="p",
        step=step,
        steps=9,
        simulated=True,
        salt="salt",
        subjects=subject_digests(["sub-1", "sub-2", "sub-1"], "salt"),
    ).but(**changes)


def nothing(average=None):
    return Resume(weights={}, average=average, optimiser={"state": {}, "param_groups": []}, state={"step": 1})


def a_recipe(width=4):
    return tiny_run.TinyRecipe.Config(width=width).build(SEQUENCES)


def save(run, step=1, recipe=None, **keywords):
    return save_checkpoint(run, recipe or a_recipe(), card(step), resume=nothing(), **keywords)


def test_a_checkpoint_comes_back_with_its_weights_and_its_plan(tmp_path):
    recipe = a_recipe()
    folder = save(tmp_path, recipe=recipe)
    for path in (tmp_path, folder):
        loaded = load_checkpoint(path)
        assert type(loaded.recipe) is tiny_run.TinyRecipe and not loaded.recipe.training
        torch.testing.assert_close(loaded.recipe.state_dict(), recipe.state_dict(), rtol=0, atol=0)
        assert loaded.card.plan == Plan(spacing_mm=(1.0, 1.0, 2.0))
        assert loaded.card.recipe == tiny_run.TinyRecipe.Config(width=4)
        assert loaded.folder == folder
        assert "Research use only" in loaded.card.use


def test_the_card_finds_a_leak_without_carrying_a_subject(tmp_path):
    text = (save(tmp_path) / "card.json").read_text()
    assert "sub-1" not in text
    loaded = load_checkpoint(tmp_path).card
    assert loaded.saw("sub-1") and loaded.saw("sub-2") and not loaded.saw("sub-3")
    assert len(loaded.subjects) == 2
    assert loaded.count_seen(["sub-1", "sub-1", "sub-3"]) == 1
    assert set(subject_digests(["sub-1"], "other salt")).isdisjoint(loaded.subjects)


def test_a_guess_at_a_subject_is_dear_and_cards_of_format_1_are_still_read(tmp_path):
    (digest,) = subject_digests(["sub-1"], "salt")
    assert digest == hashlib.scrypt(b"sub-1", salt=b"salt", n=1024, r=8, p=1).hex()[:24]
    save(tmp_path)
    old = hashlib.sha256(b"salt\0sub-9").hexdigest()[:24]
    card = load_checkpoint(tmp_path).card.but(format=1, subjects=(old,))
    assert card.saw("sub-9") and not card.saw("sub-1")


def test_a_card_that_names_nobody_is_said_to_be_unchecked(tmp_path):
    save(tmp_path)
    loaded = load_checkpoint(tmp_path)
    store = SimpleNamespace(
        rows=[SimpleNamespace(subject=name, split="test", labels_mined=()) for name in ("sub-1", "sub-8")]
    )
    assert "1 of 2 scored subjects" in seen_note(loaded, store, "test")[0]
    told = seen_note(replace(loaded, card=loaded.card.but(subjects=())), store, "test")
    assert told[0].startswith("NOT CHECKED")


def test_a_half_written_checkpoint_is_ignored_and_swept_away(tmp_path, monkeypatch):
    good = save(tmp_path, step=1)

    def dies(*_args, **_keywords):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", dies)
        with pytest.raises(OSError, match="no space"):
            save(tmp_path, step=2)
    assert latest(tmp_path) == good
    assert load_checkpoint(tmp_path).card.step == 1
    assert save(tmp_path, step=2) == latest(tmp_path)
    assert sorted(one.name for one in (tmp_path / "checkpoints").iterdir()) == ["00000001", "00000002"]


def test_only_the_newest_are_kept(tmp_path):
    for step in (1, 2, 10, 11):
        save(tmp_path, step=step, keep_last=2)
    assert sorted(one.name for one in (tmp_path / "checkpoints").iterdir()) == ["00000010", "00000011"]


def test_other_weights_than_the_cards_are_refused(tmp_path):
    folder = save(tmp_path)
    save_file(a_recipe().state_dict(), folder / "weights.safetensors")
    with pytest.raises(ValueError, match="digests differ"):
        load_checkpoint(tmp_path)
    (folder / "weights.safetensors").unlink()
    with pytest.raises(ValueError, match="missing"):
        load_checkpoint(tmp_path)


def test_weights_that_do_not_fit_the_recipe_are_refused(tmp_path):
    save(tmp_path, recipe=a_recipe(width=5))
    with pytest.raises(ValueError, match="does not fit the recipe"):
        load_checkpoint(tmp_path)


def test_a_folder_without_a_checkpoint_says_what_to_give(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint here; give a run folder"):
        load_checkpoint(tmp_path)
    assert latest(tmp_path / "absent") is None


def test_a_card_of_another_format_is_refused(tmp_path):
    place = save(tmp_path) / "card.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"format": 3}))
    with pytest.raises(ValueError, match=r"card\.json"):
        load_checkpoint(tmp_path)


def test_a_moving_average_is_what_is_used_and_the_raw_weights_are_what_goes_on(tmp_path):
    recipe = a_recipe()
    average = {name: value.detach() + 1 for name, value in recipe.named_parameters()}
    folder = save_checkpoint(tmp_path, recipe, card(), resume=nothing(average))
    used = load_checkpoint(tmp_path)
    assert used.card.weights == "average"
    torch.testing.assert_close(dict(used.recipe.named_parameters()), average, rtol=0, atol=0, check_stride=False)
    saved = read_resume(folder)
    torch.testing.assert_close(dict(saved.weights), dict(recipe.state_dict()), rtol=0, atol=0)
    assert saved.average is not None


def test_without_a_moving_average_nothing_is_added(tmp_path):
    folder = save(tmp_path)
    assert sorted(one.name for one in (folder / "resume").iterdir()) == ["optimiser.pt", "state.json"]
    assert read_resume(folder).average is None


def test_tied_weights_are_saved_under_both_names(tmp_path):
    recipe = a_recipe()
    recipe.extra = nn.ModuleList([recipe.head])
    folder = save_checkpoint(tmp_path, recipe, card(), resume=nothing())
    saved = load_file(folder / "weights.safetensors")
    torch.testing.assert_close(saved["head.weight"], saved["extra.0.weight"])


class Trap:
    def __reduce__(self):
        return (print, ("executed",))


def test_a_resume_file_that_would_run_code_is_refused(tmp_path, capsys):
    folder = save(tmp_path)
    torch.save({"state": Trap()}, folder / "resume" / "optimiser.pt")
    with pytest.raises(ValueError, match="cannot be resumed"):
        read_resume(folder)
    assert "executed" not in capsys.readouterr().out


def test_a_checkpoint_stripped_for_sharing_still_loads_but_does_not_resume(tmp_path):
    folder = save(tmp_path)
    shutil.rmtree(folder / "resume")
    assert load_checkpoint(folder).card.step == 1
    with pytest.raises(ValueError, match="cannot be resumed"):
        read_resume(folder)
