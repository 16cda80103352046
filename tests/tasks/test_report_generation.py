"""A writer sees what was acquired, says what it was taught, stops where it is best, and is scored beside controls."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from whole_fields import WholeFields, make_row

from tomoglot.batches.loader import Loader, LoaderConfig
from tomoglot.encoders.plain_conv import PlainConv
from tomoglot.encoders.text import TextEncoder
from tomoglot.recipes import brainmvp, medmap
from tomoglot.recipes.recipe import Recipe
from tomoglot.schedule import Schedule
from tomoglot.tasks import report_generation
from tomoglot.tasks.embeddings import from_scratch
from tomoglot.tasks.heads import fitting, report_writer
from tomoglot.tasks.heads.fitting import fit_reader
from tomoglot.tasks.heads.kept_writer import load_writer, read_writer_card, save_writer
from tomoglot.tasks.heads.report_sight import Shelf, Sight, take_rows
from tomoglot.tasks.heads.report_writer import (
    BEGIN,
    END,
    UNKNOWN,
    Pieces,
    ReportWriter,
    WriterConfig,
    write_split,
)
from tomoglot.tasks.report_generation import NEAREST, NORMAL, Config, score, usual_normal
from tomoglot.tasks.scores import text_scores
from tomoglot.tasks.scores.generation_scores import generation_result
from tomoglot.tasks.task import IMAGE_REMOVED, MODEL, SCRATCH

pytest.importorskip("sacrebleu", reason="scores of texts come with the extra `text`")

SEQUENCES = ("t1w", "flair")
KINDS = ("mass", "infarct", "plain")
SAYS = {
    "mass": "TECHNIQUE: {}.\nFINDINGS: A 1.5 cm mass on the left. No acute infarct.\nIMPRESSION: Left-sided mass.",
    "infarct": "TECHNIQUE: {}.\nFINDINGS: Acute infarct on the right. No mass.\nIMPRESSION: 1. Acute infarct.",
    "plain": "TECHNIQUE: {}.\nFINDINGS: No mass. No infarct.\nIMPRESSION: Normal study.",
}
SMALL = WriterConfig(width=32, layers=1, heads=2, dropout=0.0, maps=2, cells=2, max_tokens=40, label_smoothing=0.0)
LOADER = LoaderConfig(crop_voxels=(12, 12, 12), workers=0)
QUICK = Schedule(steps=50, warmup_steps=5, learning_rate=8e-3, accelerator="cpu")


@pytest.fixture(scope="module")
def store() -> WholeFields:
    """45 simulated studies of three kinds: bright on the left, bright on the right, neither; some lack flair."""
    rng = np.random.default_rng(0)
    rows, fields = [], {}
    for number in range(45):
        kind, key = KINDS[number % 3], f"s{number}"
        sequences = SEQUENCES[: 1 if number % 5 == 0 else 2]
        for sequence in sequences:
            voxels = rng.normal(100, 10, (12, 12, 12))
            if kind != "plain":
                voxels[slice(1, 5) if kind == "mass" else slice(7, 11), 3:9, 3:9] += 90
            fields[key, sequence] = voxels.astype(np.int16)
        rows.append(
            make_row(
                key,
                sequences=sequences,
                shape=(12, 12, 12),
                split=("train", "train", "train", "val", "test")[number // 3 % 5],
                report=None if number in (42, 43) else SAYS[kind].format(", ".join(sequences)),
                labels={name: float(name == kind) for name in ("mass", "infarct")},
            )
        )
    return WholeFields(rows, fields)


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    torch.manual_seed(0)
    vision = PlainConv.Config(widths=(8, 16), blocks=(0, 0), groups=4)
    return brainmvp.tiny().but(vision=vision).build(SEQUENCES).eval()


@pytest.fixture(scope="module")
def pieces() -> Pieces:
    return Pieces(SAYS.values(), TextEncoder.Config().build().tokenizer)


def settings(**changes) -> Config:
    return Config(writer=SMALL, loader=LOADER, schedule=QUICK, beams=2, draws=200, checks=4).but(**changes)


def loader(store, split="train", size=4, train=False) -> Loader:
    return Loader(store, LOADER.but(batch_size=size, sequences=SEQUENCES), split=split, train=train)


@pytest.fixture(scope="module")
def batch(store):
    """Four studies, of which the first alone lacks flair."""
    whole = next(iter(loader(store, size=99)))
    rows = whole.acquired[:, 1].int().argsort().tolist()
    found = take_rows(whole, [rows[0], *rows[-3:]])
    assert found.acquired.tolist() == [[True, False], [True, True], [True, True], [True, True]]
    return found


@pytest.fixture
def writer(store, recipe, pieces) -> ReportWriter:
    sight = Sight(recipe, maps=2, cells=2)
    torch.manual_seed(1)
    return ReportWriter(sight, pieces, SMALL, shelf=Shelf.of(sight, loader(store))).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_a_report_of_known_pieces_is_read_back_as_it_was_but_for_the_technique(pieces, kind):
    numbers = pieces.encode(SAYS[kind], max_tokens=100)
    assert numbers[0] == BEGIN and numbers[-1] == END and UNKNOWN not in numbers
    said = SAYS[kind].split("\n", 1)[1].replace("\nIMPRESSION", "\n\nIMPRESSION")
    assert pieces.decode(numbers[1:]) == said


def test_a_plain_text_has_no_headings_unknown_pieces_are_left_out_and_long_ones_cut(pieces):
    assert pieces.decode(pieces.encode("No mass.", max_tokens=10)[1:]) == "No mass."
    assert pieces.decode(pieces.encode("No zebra mass.", max_tokens=10)[1:]) == "No mass."
    assert pieces.encode("No mass. No mass.", max_tokens=4) == pieces.encode("No mass.", max_tokens=9)[:4]


def test_cells_are_means_and_maxima_of_the_maps_and_absent_sequences_are_zeros(batch, recipe):
    sight = Sight(recipe, maps=2, cells=2).eval()
    with torch.no_grad():
        pooled, coarse, fine = sight(batch)
        told = recipe.backbone("t1w")(batch.volumes[:, :1])
    torch.testing.assert_close(pooled[:, 0, 0], told.pooled)
    corner = told.pyramid[-2][1, :, :3, 3:, :3]
    torch.testing.assert_close(fine[1, 0, 0b010], torch.cat([corner.mean((1, 2, 3)), corner.amax((1, 2, 3))]))
    assert told.pyramid[-2].shape[2:] == (6, 6, 6) and coarse.shape == (4, 2, 8, 2 * told.pyramid[-1].shape[1])
    assert not batch.acquired[0, 1] and (coarse[0, 1] == 0).all()


def test_what_the_writer_sees_is_each_studys_own_and_nothing_that_was_not_acquired(batch, writer):
    alone = take_rows(batch, [0])
    with torch.no_grad():
        one, known = writer.memory(alone)
        both, all_known = writer.memory(batch)
        assert one.shape[1] == 17 and both.shape[1] == 34 and known.all()
        torch.testing.assert_close(both[:1, all_known[0]], one)
        # Padding with cells that were not acquired changes nothing in the loss.
        repeated = replace(batch, reports=(batch.reports[0],) * 4)
        losses = [writer.losses(take_rows(repeated, [row]), progress=0.0)["words"].item() for row in range(4)]
        assert writer.losses(repeated, progress=0.0)["words"].item() == pytest.approx(np.mean(losses), rel=1e-4)
        garbage = batch.volumes.clone()
        garbage[0, 1] = 1e3
        again, _ = writer.memory(replace(batch, volumes=garbage))
        torch.testing.assert_close(again[all_known], both[all_known])
        moved, _ = writer.memory(replace(batch, volumes=batch.volumes.flip(2)))
        assert not torch.allclose(moved[all_known], both[all_known], atol=0.1)


def test_a_cell_knows_its_sequence_and_its_place(batch, writer):
    alike = take_rows(batch, [1])
    alike = replace(alike, volumes=torch.full_like(alike.volumes, 0.5))
    with torch.no_grad():
        for part in ("mean", "spread"):
            for level in range(3):
                getattr(writer, f"{part}_{level}").fill_(float(part == "spread"))
        memory = writer.memory(alike)[0].reshape(2, 17, -1)
    assert not torch.allclose(memory[0], memory[1], atol=0.1), "sequences look the same"
    place = writer.place(writer.places_1) if hasattr(writer, "places_1") else None
    assert place is not None and (place.std(dim=0) > 0.01).any() and (writer.places_0 == 0).all()


def test_from_the_shelf_it_sees_what_it_sees_of_the_volumes(store, writer):
    shelf = Shelf.of(writer.sight, loader(store, "val"))
    writer.remember(shelf)
    whole = next(iter(loader(store, "val", size=3)))
    light = next(shelf.once(3))
    assert light.studies == whole.studies and light.volumes.numel() == 0 and light.reports == whole.reports
    with torch.no_grad():
        torch.testing.assert_close(writer.memory(light)[0], writer.memory(whole)[0], atol=2e-2, rtol=0)
    stream = shelf.endless(5, seed=3)
    seen = [study for _ in range(5) for study in next(stream).studies]
    count = len(shelf.studies)
    assert set(seen[:count]) == set(shelf.studies.studies) and seen[:count] != seen[count : 2 * count]


def test_greedy_writing_takes_the_likeliest_piece_each_time_without_a_cache(batch, writer):
    with torch.no_grad():
        for parameter in writer.decoder.parameters():
            parameter.mul_(3)  # So that choices differ from place to place.
        memory, acquired = writer.memory(batch)
        slow = torch.full((len(batch), 1), BEGIN)
        while slow.shape[1] < SMALL.max_tokens:
            logits = writer.decoder(
                slow, encoder_hidden_states=memory, encoder_attention_mask=acquired.long(), use_cache=False
            ).logits[:, -1]
            logits[:, [0, BEGIN, UNKNOWN]] = -torch.inf
            slow = torch.cat([slow, logits.argmax(dim=1, keepdim=True)], dim=1)
    assert writer.write(batch) == [writer.pieces.decode(row[1:]) for row in slow.tolist()]


def test_writing_for_many_at_once_says_what_writing_one_by_one_says(store, writer, monkeypatch):
    """Whole split in batches of two, in stacks of five that cut through batches and mix one sequence with two."""
    with torch.no_grad():
        for parameter in writer.decoder.parameters():
            parameter.mul_(3)
    stacks: list[int] = []
    write_from = ReportWriter.write_from

    def counted(self, memory, acquired, **how):
        stacks.append(len(memory))
        return write_from(self, memory, acquired, **how)

    monkeypatch.setattr(report_writer, "AT_ONCE", 5)
    monkeypatch.setattr(ReportWriter, "write_from", counted)
    together = write_split(writer, loader(store, "train", size=2), beams=1)
    assert set(stacks) == {5, 27 % 5}, "27 studies of the split"
    alone = [text for one in loader(store, "train", size=1) for text in writer.write(one)]
    assert together == alone and len(set(alone)) > 1


def test_training_moves_the_decoder_alone_and_keeps_the_weights_that_were_best_on_val(
    store, recipe, writer, monkeypatch
):
    before = {name: value.clone() for name, value in writer.sight.state_dict().items()}
    kept, losses = [], iter([3.0, 1.0, 2.0])

    def held_out_loss(self, batches, device="cpu"):
        kept.append(self.place.weight.detach().clone())
        return next(losses)

    monkeypatch.setattr(ReportWriter, "held_out_loss", held_out_loss)
    batches = loader(store, train=True)
    done = fit_reader(writer, batches, QUICK.but(steps=9), held_out=lambda: [], checks=3)
    assert done == (6, 1.0) and len(kept) == 3
    assert torch.equal(writer.place.weight, kept[1]) and not torch.equal(kept[1], kept[2])
    for name, value in writer.sight.state_dict().items():
        assert torch.equal(value, before[name])
    assert not any(module.training for module in writer.train().sight.modules())
    assert fit_reader(writer, batches, QUICK.but(steps=2)) == (2, None)


def test_the_held_out_loss_is_a_mean_over_studies_and_is_not_smoothed(store, writer):
    writer.config = SMALL.but(label_smoothing=0.5)
    batches = list(loader(store, "val"))
    with torch.no_grad():
        single = [writer._cross_entropy(batch, smoothing=0.0).item() for batch in batches]
        smoothed = writer.losses(batches[0], progress=0.0)["words"].item()
    assert smoothed != pytest.approx(single[0], rel=1e-4)
    expected = np.average(single, weights=[len(batch) for batch in batches])
    assert writer.held_out_loss(batches) == pytest.approx(expected, rel=1e-6)


def test_the_usual_normal_report_names_no_finding_and_is_the_commonest():
    normal, rarer = "FINDINGS: No mass. No infarct.", "FINDINGS: Nothing of note. No mass."
    found = ["FINDINGS: Large mass."] * 5 + ["FINDINGS: Possible infarct."]
    assert usual_normal([*found, rarer, normal, normal], ("mass", "infarct")) == (normal, 3)
    # Of equals, the one whose sentences are the commonest.
    assert usual_normal([*found, rarer, normal, "No infarct. Clear."], ("mass", "infarct")) == (normal, 3)
    assert usual_normal(found, ("mass", "infarct")) == (found[0], 0)


def test_scores_are_of_what_was_written_beside_what_is_true(monkeypatch):
    read, label = [], text_scores.label_report
    monkeypatch.setattr(text_scores, "label_report", lambda text, asked: read.append(text) or label(text, asked))
    true = [SAYS[kind] for kind in KINDS] * 6
    right_twice = [SAYS["mass"], SAYS["infarct"], SAYS["mass"]] * 6
    result = generation_result(
        {MODEL: right_twice, NORMAL: [SAYS["plain"]] * 18},
        true,
        findings=("mass", "infarct"),
        subjects=np.arange(18),
        studies=tuple(f"study-{at}" for at in range(18)),
        draws=60,
    )
    assert result.score("mass", metric="clinical_f1").value == pytest.approx(2 * 6 / (2 * 6 + 6))
    assert result.score("infarct", metric="clinical_f1").value == 1
    assert result.headline().value == pytest.approx((2 / 3 + 1) / 2)
    assert result.score("micro", metric="clinical_f1").value == pytest.approx(2 * 12 / (2 * 12 + 6))
    assert result.score(metric="clinical_f1", arm=NORMAL).value == 0
    assert result.score("whole report", metric="corpus_bleu4").value > 0.6
    assert {(row.against, row.metric) for row in result.comparisons} == {
        (NORMAL, metric) for metric in ("clinical_f1", "corpus_bleu4", "rouge_l", "meteor")
    }
    assert result.predictions[2].probabilities == {"mass": 1.0, "infarct": 0.0}
    assert result.predictions[2].labels == {"mass": 0.0, "infarct": 0.0}
    assert result.predictions[0].measures["whole report/rouge_l"] == 1
    # Three texts are true, the model wrote two of them, and the other arm one: rules read each once an arm.
    assert len(read) == 3 + 2 + 1
    notes = " ".join(result.notes)
    assert "model 0.111, always normal 0.056, true 0.167" in notes and "rules mined" in notes


@pytest.fixture(scope="module")
def taught(store, recipe, tmp_path_factory):
    """What a run gave, its folder, and what it told of its progress."""
    before = {name: value.clone() for name, value in recipe.state_dict().items()}
    out, told = tmp_path_factory.mktemp("out"), []
    result = score(recipe, store, settings(), out=out, progress=lambda at, total: told.append((at, total)))
    for name, value in recipe.state_dict().items():
        assert torch.equal(value, before[name]), "the recipe that was given has changed"
    return result, out, told


def lines_of(out):
    return [json.loads(line) for line in (out / "reports.jsonl").read_text().splitlines()]


def test_a_writer_learns_to_say_what_it_sees_and_not_without_the_image(store, taught):
    result, out, told = taught
    assert result.score(metric="clinical_f1").value > 0.95
    assert result.score(metric="clinical_f1", arm=IMAGE_REMOVED).value < 0.8
    assert result.score(metric="clinical_f1", arm=NORMAL).value == 0
    assert {row.arm for row in result.scores} == {MODEL, SCRATCH, IMAGE_REMOVED, NEAREST, NORMAL}
    assert result.simulated and result.subjects == result.studies == 9 - 2 and result.task == "report_generation"
    assert told[-1] == (2 * QUICK.steps, 2 * QUICK.steps)
    lines = lines_of(out)
    tested = {row.key: row.report for row in store.rows if row.split == "test" and row.report}
    assert {line["study"]: line["true"] for line in lines} == tested
    assert set(lines[0]["written"]) == {MODEL, SCRATCH, IMAGE_REMOVED, NEAREST, NORMAL}
    assert "1.5 cm mass on the left" in str([line["written"][MODEL] for line in lines])
    assert "left" not in result.to_json(), "report text is written into the folder that was named only"
    notes = " ".join(result.notes)
    assert "encoder frozen, 27 reports" in notes and "chosen on val" in notes


def test_a_kept_writer_writes_what_it_wrote_and_nothing_is_trained(store, recipe, taught, monkeypatch, tmp_path):
    first, out, _ = taught
    monkeypatch.setattr(report_generation, "fit_reader", None)
    asked = settings(writer_from=out / "writer", **{"writer.width": 64})
    again = score(recipe, store, asked, out=tmp_path)
    assert again.score(metric="clinical_f1") == first.score(metric="clinical_f1")
    assert {row.arm for row in again.scores} == {MODEL, IMAGE_REMOVED} and not (tmp_path / "writer").exists()
    # All nine of the split are written for, the two without a report too.
    written = {line["study"]: line["written"] for line in lines_of(tmp_path)}
    assert len(written) == 9
    assert all(written[line["study"]][MODEL] == line["written"][MODEL] for line in lines_of(out))
    notes = " ".join(again.notes)
    assert "nothing was trained" in notes and "NOT HELD OUT" not in notes
    seen = " ".join(score(recipe, store, asked.but(split="all", controls=False)).notes)
    assert "NOT HELD OUT: the writer learned from reports of 36 of the 45 subjects." in seen


def test_studies_without_a_report_are_written_for_and_not_scored(store, recipe, taught, tmp_path):
    unread = store.but(report=None)
    result = score(recipe, unread, settings(writer_from=taught[1] / "writer", controls=False), out=tmp_path)
    assert not result.scores and result.studies == 9 and "what was written is not scored" in " ".join(result.notes)
    lines = lines_of(tmp_path)
    assert [line["true"] for line in lines] == [None] * 9
    assert "mass on the left" in str([line["written"][MODEL] for line in lines])


def test_a_writer_is_refused_where_it_does_not_belong(store, recipe, taught, tmp_path):
    folder = taught[1] / "writer"
    for other in (from_scratch(recipe, seed=7), brainmvp.tiny().build(SEQUENCES)):
        with pytest.raises(ValueError, match="encoder of another checkpoint"):
            score(other, store, settings(writer_from=folder))
    otherwise = store.but(report=None)
    otherwise.plan = store.plan.but(intensity="percentile")
    with pytest.raises(ValueError, match="prepared otherwise"):
        score(recipe, otherwise, settings(writer_from=folder))
    with pytest.raises(ValueError, match=r"no writer\.json here"):
        score(recipe, store, settings(writer_from=tmp_path))
    with pytest.raises(ValueError, match="split 'later' has any of"):
        score(recipe, store, settings(writer_from=folder, split="later"))
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[: 1000 if file.suffix == ".safetensors" else None])
    with pytest.raises(ValueError, match="its weights do not fit its card"):
        load_writer(tmp_path)


def test_what_the_recipe_aligns_is_seen_last_without_a_place_and_kept_with_the_writer(store, batch, pieces, tmp_path):
    vision = PlainConv.Config(widths=(8, 16), blocks=(0, 0), groups=4)
    torch.manual_seed(0)
    speaking = medmap.tiny().but(vision=vision).build(SEQUENCES).eval()
    sight, without = (Sight(speaking, maps=1, cells=2, aligned=aligned).eval() for aligned in (True, False))
    with torch.no_grad():
        *levels, last = sight(batch)
        torch.testing.assert_close(last[:, :, 0], speaking.align_volumes(batch))
        for ours, theirs in zip(levels, without(batch), strict=True):
            torch.testing.assert_close(ours, theirs)
    sizes = SMALL.but(maps=1, aligned=True)
    writer = ReportWriter(sight, pieces, sizes, shelf=Shelf.of(sight, loader(store))).eval()
    assert writer.memory(batch)[0].shape[1] == 2 * (1 + 8 + 1) and (writer.places_2 == 0).all()
    named = {"plan": store.plan, "loader": LOADER, "simulated": True, "learned_from": {"sub-1"}}
    again = load_writer(save_writer(tmp_path, writer, speaking, **named))
    assert again.write(batch) == writer.write(batch) and not again.training
    card = read_writer_card(tmp_path)
    assert card.count_seen({"sub-1", "sub-2"}) == 1 and "sub-1" not in card.to_json() and "esearch" in card.use
    # Whether it is seen is a switch, and a recipe without a text side goes without.
    short = settings(controls=False, checks=1, **{"schedule.steps": 1, "writer.max_tokens": 8, "writer.maps": 1})
    mute = brainmvp.tiny().but(vision=vision).build(SEQUENCES).eval()
    for number, (recipe, aligned, seen) in enumerate(((speaking, True, 3), (speaking, False, 2), (mute, True, 2))):
        score(recipe, store, short.but(**{"writer.aligned": aligned}), out=tmp_path / str(number))
        kept = read_writer_card(tmp_path / str(number) / "writer")
        assert len(kept.shapes.widths) == seen and kept.writer.aligned == (seen == 3)
    with pytest.raises(ValueError, match="no text side, so there are no aligned vectors"):
        Sight(mute, maps=1, cells=2, aligned=True)


def test_an_encoder_that_sequences_share_is_kept_once(recipe):
    assert len(Sight(recipe, maps=1, cells=2).encoders) == 1


def test_fine_tuning_trains_a_copy_and_two_runs_are_equal(store, recipe, monkeypatch):
    trained, fit = [], fitting.fit_reader

    def spy(writer, *given, **named):
        first = {name: value.clone() for name, value in writer.sight.state_dict().items()}
        done = fit(writer, *given, **named)
        trained.append(any(not torch.equal(first[name], value) for name, value in writer.sight.state_dict().items()))
        return done

    monkeypatch.setattr(report_generation, "fit_reader", spy)
    before = {name: value.clone() for name, value in recipe.state_dict().items()}
    short = settings(mode="finetune", controls=False, checks=1, **{"schedule.steps": 4, "writer.max_tokens": 12})
    one, two = (score(recipe, store, short) for _ in range(2))
    assert one.predictions == two.predictions and trained == [True, True]
    assert all(torch.equal(value, before[name]) for name, value in recipe.state_dict().items())
    assert {row.arm for row in one.scores} == {MODEL} and not one.comparisons


def test_fewer_reports_and_no_val_split_are_said(store, recipe):
    without = store.but(lambda row: row.split != "val")
    short = settings(label_fraction=0.5, controls=False, **{"schedule.steps": 2, "writer.max_tokens": 12})
    notes = " ".join(score(recipe, without, short).notes)
    assert "14 reports to learn from" in notes and "not chosen, since there is no val split" in notes


def test_what_cannot_be_learned_is_refused_before_training(store, recipe):
    unread = store.but(report=None)
    with pytest.raises(ValueError, match=r"no study of split 'train' has a report.*studies with both: none"):
        score(recipe, unread, settings())
    with pytest.raises(ValueError, match="split 'later' has a report"):
        score(recipe, store, settings(split="later"))
    with pytest.raises(ValueError, match="learns from"):
        score(recipe, store, settings(split="val"))
    with pytest.raises(ValueError, match="knows no finding glioma; set findings to some of brain"):
        score(recipe, store, settings(findings=("glioma",)))


def test_a_recipe_whose_maps_cannot_be_seen_is_refused_in_words(recipe, monkeypatch):
    monkeypatch.setattr(type(recipe), "backbone", Recipe.backbone)
    with pytest.raises(ValueError, match="no vision encoder that a task may copy; this task needs its maps"):
        Sight(recipe, maps=1, cells=2)
    wide = PlainConv.Config(widths=(8,), blocks=(0,), groups=4, in_channels=2).build()
    monkeypatch.setattr(type(recipe), "backbone", lambda self, sequence=None: wide)
    with pytest.raises(ValueError, match="reads 2 channels at once"):
        Sight(recipe, maps=1, cells=2)
