"""Visual question answering: a question about a study, answered by one of the answers that were usual in training.

Trained on the questions of the train split, chosen by its loss on val, asked once about another split. Answers are
compared as they stand: another word is a wrong answer, and one that training never gave cannot be given. Beside the
score stand the same network on an encoder from scratch, trained on the questions alone, and asked with the image
removed; and what needs no network: the most usual answer to the same words, and chance.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator

from tomoglot.batches.batch import Batch
from tomoglot.batches.loader import Loader, LoaderConfig, StudySource
from tomoglot.checkpoint import Loaded
from tomoglot.config import Settings
from tomoglot.encoders.text import FrozenTextEncoder, TextEncoder
from tomoglot.recipes.recipe import Recipe
from tomoglot.schedule import Schedule
from tomoglot.store.catalogue import StudyRow
from tomoglot.studies.atomic import write_bytes
from tomoglot.studies.questions import Question, read_questions
from tomoglot.tasks.embeddings import Progress, from_scratch, is_simulated, opened, seen_note, unread_note
from tomoglot.tasks.heads.answering import (
    Answerer,
    AnswererConfig,
    CellAnswerer,
    FusedAnswerer,
    Said,
    asked_of,
    fuse_questions,
)
from tomoglot.tasks.heads.fitting import CALIBRATED, fit_reader
from tomoglot.tasks.heads.report_sight import Shelf, Sight
from tomoglot.tasks.labels import PartOfStore, fewer_labels
from tomoglot.tasks.scores.answer_scores import Marked, chance, mark, score_answers, usual_answers
from tomoglot.tasks.scores.intervals import DRAWS
from tomoglot.tasks.task import IMAGE_REMOVED, MODEL, SCRATCH, Prediction, TaskResult

VERB: Literal["transfer"] = "transfer"
CHOOSING = "val"
QUESTION_ONLY, MAJORITY, CHANCE = "question only", "most usual answer", "chance"
ARMS = (MODEL, SCRATCH, QUESTION_ONLY)
WRITTEN = "answers.jsonl"
Asking = list[tuple[StudyRow, Question]]


class Config(Settings):
    """How to learn to answer, and to score.

    Attributes:
        questions: the table (`studies.questions`), `.jsonl` or `.csv`.
        mode: `frozen` (what the encoder sees is computed once) or `finetune` (the encoder is trained as well).
        split: which studies are asked about; not one that is learned from.
        label_fraction: share of the training subjects whose questions are used.
        controls: also score the five controls.
        seed: of new weights, the order, the subjects that keep their questions, and the bootstrap.
        answers: so many of the most usual answers of training can be given.
        answerer: sizes of the network and of what it sees.
        text: the frozen encoder of the questions.
        per_study: at most so many questions of a study a step.
        batch_size: studies a step.
        checks: how often, in training, the val split is asked which weights to keep.
        schedule: of training.
        draws: of the bootstrap.
        loader: how studies are read; None reads them whole.
    """

    questions: Path | None = None
    mode: Literal["frozen", "finetune"] = "frozen"
    split: str = "test"
    label_fraction: float = Field(1.0, gt=0, le=1)
    controls: bool = True
    seed: int = Field(0, ge=0)
    answers: int = Field(500, ge=2)
    answerer: AnswererConfig = AnswererConfig()
    text: TextEncoder.Config = TextEncoder.Config()
    per_study: int = Field(8, ge=1)
    batch_size: int = Field(16, ge=1)
    checks: int = Field(10, ge=1)
    schedule: Schedule = Schedule(steps=600, warmup_steps=30, learning_rate=1e-3)
    draws: int = Field(DRAWS, ge=1)
    loader: LoaderConfig | None = None

    @model_validator(mode="after")
    def _fusion_is_frozen(self) -> Self:
        if self.mode == "finetune" and self.answerer.reader == "fused":
            raise ValueError("reader 'fused' asks the recipe's fusion as it is: set mode=frozen, or reader=cells")
        return self


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Job:
    """What all arms share; `questions` are by the catalogue's key."""

    config: Config
    store: StudySource
    loader: LoaderConfig
    questions: Mapping[str, tuple[Question, ...]]
    answers: tuple[str, ...]
    text: FrozenTextEncoder
    notes: tuple[str, ...]
    progress: Progress | None

    def batches(self, split: str, *, training: bool = False) -> Loader:
        return Loader(self.store, self.loader, split=split, train=training)

    def asked(self, split: str) -> Asking:
        """In the loader's order, which is the store's."""
        return [(row, one) for row in self.store.rows if row.split == split for one in self.questions[row.key]]

    @property
    def splits(self) -> tuple[str, ...]:
        found = {row.split for row in self.store.rows}
        return tuple(split for split in ("train", CHOOSING, self.config.split) if split in found)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Seen:
    """What one recipe shows of the studies: cells on shelves by split, and what its fusion makes of the questions."""

    recipe: Recipe
    sight: Sight
    shelves: Mapping[str, Shelf]
    fused: Said


def score(
    model: Recipe | Loaded,
    store: StudySource,
    config: Config,
    *,
    out: Path | None = None,
    progress: Progress | None = None,
) -> TaskResult:
    """Train on the questions of the train split, choose on val, answer those of the settings' split, with controls.

    Every question with its answers goes to `out/answers.jsonl`, where a folder is given.

    Raises:
        ValueError: no questions, none about a study of a split that is needed, a split that is learned from, or an
            encoder whose maps cannot be seen.
    """
    if config.split in ("train", CHOOSING, "all"):
        raise ValueError(f"split {config.split!r} is what the task learns from; score another, such as test")
    recipe, settings = opened(model, store, config.loader)
    job = _plan(recipe, store, config, settings, progress)
    asked = job.asked(config.split)
    questions = [one for _, one in asked]
    said, notes = _answer_all(recipe, job)
    words = {arm: _words(its, asked, job.answers) for arm, its in said}
    marked = {arm: mark(words[arm], questions, yes=_yes(its, asked, job)) for arm, its in said}
    if config.controls:
        taught = [one for _, one in job.asked("train")]
        words[MAJORITY] = usual_answers(taught, questions)
        marked[MAJORITY] = mark(words[MAJORITY], questions)
        marked[CHANCE] = chance(taught, questions)
    subjects = np.unique([row.subject for row, _ in asked], return_inverse=True)[1]
    scores, comparisons = score_answers(marked, questions, subjects=subjects, draws=config.draws, seed=config.seed)
    if out is not None:
        write_bytes(out / WRITTEN, _lines(asked, words, said[0][1]).encode())
    unread = unread_note(recipe, store, config.split, trained=True)
    return TaskResult(
        task="vqa",
        split=config.split,
        model=type(recipe).__name__,
        simulated=is_simulated(store, config.split),
        subjects=len(np.unique(subjects)),
        studies=len({row.key for row, _ in asked}),
        scores=tuple(scores),
        comparisons=comparisons,
        notes=(*seen_note(model, store, config.split, settings), *unread, *notes, *job.notes),
        predictions=_predictions(asked, marked[MODEL]),
    ).under(config)


def _plan(
    recipe: Recipe, store: StudySource, config: Config, settings: LoaderConfig, progress: Progress | None
) -> _Job:
    """The studies that are asked about; what can be refused before training is refused here."""
    if config.questions is None:
        raise ValueError(
            "vqa needs a table of questions: --set questions=FILE, .jsonl or .csv with subject, study, question and "
            "answer (`tomoglot phantom` writes questions.jsonl beside the studies)"
        )
    given = read_questions(config.questions)
    by_study: dict[tuple[str, str], list[Question]] = {}
    for one in given:
        by_study.setdefault((one.subject, one.study), []).append(one)
    questions = {}
    for row in store.rows:
        shown = set(row.sequences) & set(recipe.sequences)
        its = by_study.get((row.subject, row.study), ())
        questions[row.key] = tuple(one for one in its if (one.sequence is None and shown) or one.sequence in shown)
    told = PartOfStore(store, tuple(row for row in store.rows if questions[row.key]))
    splits = Counter(row.split for row in told.rows)
    for needed in ("train", config.split):
        if not splits[needed]:
            raise ValueError(
                f"{config.questions.name}: no question is about a study of split {needed!r} in this store; studies "
                f"asked about: {', '.join(f'{splits[name]} {name}' for name in sorted(splits)) or 'none'} (subject "
                "and study must be written as in the store)"
            )
    kept = fewer_labels(told, fraction=config.label_fraction, seed=config.seed)
    taught = Counter(one.answer for row in kept.rows if row.split == "train" for one in questions[row.key])
    answers = tuple(sorted(sorted(taught), key=lambda answer: -taught[answer])[: config.answers])
    if len(answers) < 2:
        raise ValueError(f"{config.questions.name}: all questions to learn from have one answer; there is no choice")
    used = {row.key: questions[row.key] for row in kept.rows}
    scored = [one for row in kept.rows if row.split == config.split for one in used[row.key]]
    unknown = np.mean([one.answer not in answers for one in scored])
    left = len(given) - sum(map(len, questions.values()))
    return _Job(
        config=config,
        store=kept,
        loader=settings.but(sequences=recipe.sequences, batch_size=config.batch_size, seed=config.seed),
        questions=used,
        answers=answers,
        text=config.text.build(),
        notes=(
            f"{len(answers)} answers can be given, of {len(taught)} in training; {unknown:.1%} of the scored questions "
            "have another, and count as wrong.",
            f"{len(scored)} questions scored; {left} left out, about a study or sequence that is not in the store or "
            "not read by this recipe.",
            f"{IMAGE_REMOVED}: volumes are zeros, which sequences were acquired stays known. {QUESTION_ONLY}: trained "
            f"and asked without any study. {MAJORITY}: in training, to the same words, else to the kind of question.",
        ),
        progress=progress,
    )


def _answer_all(recipe: Recipe, job: _Job) -> tuple[list[tuple[str, Said]], list[str]]:
    """What each trained arm says of the scored questions, the model first, and in words how it was trained."""
    config = job.config
    seen = _see(recipe, job)
    net, note = _fit(seen, job, arm=MODEL)
    said, notes = [(MODEL, _ask(net, seen, job))], [note]
    if config.controls:
        said.append((IMAGE_REMOVED, _ask_blind(net, seen, job)))
        net, note = _fit(seen, job, arm=QUESTION_ONLY)
        said.append((QUESTION_ONLY, _ask(net, seen, job)))
        notes.append(note)
        seen = _see(from_scratch(recipe, seed=config.seed), job)
        net, note = _fit(seen, job, arm=SCRATCH)
        said.append((SCRATCH, _ask(net, seen, job)))
        notes.append(note)
    return said, notes


def _see(recipe: Recipe, job: _Job) -> _Seen:
    """Every study through the encoder once; where it is to be trained, some studies only."""
    config, device = job.config, job.config.schedule.fabric().device
    sight = Sight(recipe, maps=config.answerer.maps, cells=config.answerer.cells).to(device).eval()
    if config.mode == "finetune":
        some = islice(job.batches("train"), max(1, CALIBRATED // config.batch_size))
        return _Seen(recipe=recipe, sight=sight, shelves={"train": Shelf.of(sight, some, device=device)}, fused={})
    fused: Said = {}
    if config.answerer.reader == "fused":
        recipe = copy.deepcopy(recipe).to(device)
        for split in job.splits:
            fused |= fuse_questions(recipe, job.batches(split), job.questions)
    shelves = {split: Shelf.of(sight, job.batches(split), device=device) for split in job.splits}
    return _Seen(recipe=recipe, sight=sight, shelves=shelves, fused=fused)


def _fit(seen: _Seen, job: _Job, *, arm: str) -> tuple[Answerer, str]:
    """One arm's network, trained, and in words how."""
    config, frozen, steps = job.config, job.config.mode == "frozen", job.config.schedule.steps
    net: Answerer
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if seen.fused and arm != QUESTION_ONLY:
            net = FusedAnswerer(config.answerer, seen.fused, num_answers=len(job.answers))
        else:
            net = CellAnswerer(
                seen.sight,
                config.answerer,
                num_answers=len(job.answers),
                text_width=job.text.embedding,
                shelf=seen.shelves["train"],
                frozen=frozen or arm == QUESTION_ONLY,
                blank=arm == QUESTION_ONLY,
            )
            for shelf in seen.shelves.values() if frozen else ():
                net.remember(shelf)
    net.know(job.questions, job.answers, text=job.text, per_study=config.per_study)
    batches: Iterable[Batch] = job.batches("train", training=True)
    if frozen:
        batches = seen.shelves["train"].endless(config.batch_size, seed=config.seed)
    report, at = job.progress, ARMS.index(arm)
    chosen = fit_reader(
        net,
        batches,
        config.schedule,
        held_out=(lambda: _once(seen, job, CHOOSING)) if CHOOSING in job.splits else None,
        checks=config.checks,
        seed=config.seed,
        progress=None
        if report is None
        else lambda done: report(at * steps + done, (len(ARMS) if config.controls else 1) * steps),
    )
    taught = job.asked("train")
    return net, (
        f"{arm}: encoder {config.mode}, {len(taught)} questions about {len({row.key for row, _ in taught})} studies to "
        f"learn from; {chosen.said(steps, 'nats')}"
    )


def _once(seen: _Seen, job: _Job, split: str) -> Iterable[Batch]:
    return job.batches(split) if job.config.mode == "finetune" else seen.shelves[split].once(job.config.batch_size)


def _ask(net: Answerer, seen: _Seen, job: _Job) -> Said:
    return net.answer(_once(seen, job, job.config.split))


def _ask_blind(net: Answerer, seen: _Seen, job: _Job) -> Said:
    """With the image removed."""

    def removed() -> Iterator[Batch]:
        for batch in job.batches(job.config.split):
            yield replace(batch, volumes=torch.zeros_like(batch.volumes))

    if isinstance(net, FusedAnswerer):
        net.remember(fuse_questions(seen.recipe, removed(), job.questions))
    return net.answer(removed())


def _words(said: Said, asked: Asking, answers: Sequence[str]) -> list[str]:
    return [answers[int(said[row.key, asked_of(one)].argmax())] for row, one in asked]


def _yes(said: Said, asked: Asking, job: _Job) -> NDArray[np.float64] | None:
    """Probability of yes against no, or None where they are not both answers."""
    if not {"yes", "no"} <= set(job.answers):
        return None
    at = [job.answers.index(word) for word in ("yes", "no")]
    both = torch.stack([said[row.key, asked_of(one)][at] for row, one in asked]).double().clamp(min=1e-12)
    return (both[:, 0] / both.sum(dim=1)).numpy()


def _predictions(asked: Asking, marked: Marked) -> tuple[Prediction, ...]:
    """Of each study, how many of its questions were answered rightly."""
    right: dict[str, list[float]] = {}
    for (row, _), its in zip(asked, marked.right, strict=True):
        right.setdefault(row.key, []).append(float(its))
    return tuple(
        Prediction(study=study, probabilities={}, measures={"accuracy": float(np.mean(its)), "questions": len(its)})
        for study, its in right.items()
    )


def _lines(asked: Asking, words: Mapping[str, Sequence[str]], said: Said) -> str:
    """One line a question: its answer, and what each arm answered."""
    lines = []
    for at, (row, one) in enumerate(asked):
        line = {
            "study": row.key,
            "question": one.question,
            "kind": one.kind,
            "form": one.form,
            "sequence": one.sequence,
            "true": one.answer,
            "probability": round(float(said[row.key, asked_of(one)].max()), 4),
            "answers": {arm: its[at] for arm, its in words.items()},
        }
        lines.append(json.dumps(line, ensure_ascii=False, sort_keys=True) + "\n")
    return "".join(lines)
