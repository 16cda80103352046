"""Report generation: a small decoder learns to write findings and impression from what a pre-trained encoder sees.

Trained on the reports of the train split (teacher forcing), chosen by its loss on val, written once for another split.
Scored by what the written report says of each finding (a rule-based labeller reads both reports) and by its words.
Beside the scores stand the same decoder on an encoder from scratch, the decoder with the image removed, the report of
the training study whose volumes are most alike, and the most usual normal report of the training, which sees nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from tomoglot.batches.batch import Batch
from tomoglot.batches.loader import Loader, LoaderConfig, StudySource
from tomoglot.checkpoint import Loaded
from tomoglot.config import Settings
from tomoglot.encoders.text import TextEncoder
from tomoglot.recipes.recipe import Recipe
from tomoglot.schedule import Schedule
from tomoglot.store.catalogue import StudyRow
from tomoglot.studies.atomic import write_bytes
from tomoglot.studies.findings import LISTS, label_report
from tomoglot.studies.report import report_body, sentences
from tomoglot.tasks.embeddings import (
    Progress,
    embed_split,
    from_scratch,
    has_text_side,
    is_simulated,
    opened,
    refuse_other_plan,
    seen_note,
    unread_note,
)
from tomoglot.tasks.heads.fitting import CALIBRATED, fit_reader
from tomoglot.tasks.heads.kept_writer import load_writer, read_writer_card, refuse_other_encoder, save_writer
from tomoglot.tasks.heads.report_sight import Shelf, Sight
from tomoglot.tasks.heads.report_writer import Pieces, ReportWriter, WriterConfig, write_split
from tomoglot.tasks.labels import PartOfStore, fewer_labels
from tomoglot.tasks.queries.searches import volume_vectors
from tomoglot.tasks.scores.generation_scores import generation_result
from tomoglot.tasks.scores.intervals import DRAWS
from tomoglot.tasks.scores.text_scores import score_texts
from tomoglot.tasks.task import IMAGE_REMOVED, MODEL, SCRATCH, TaskResult, side_of

VERB: Literal["transfer"] = "transfer"
CHOOSING = "val"
NEAREST, NORMAL = "nearest report", "always normal"
WRITTEN, KEPT = "reports.jsonl", "writer"


class Config(Settings):
    """How to learn to write, and to score.

    Attributes:
        mode: `frozen` (what the encoder sees is computed once) or `finetune` (the encoder is trained as well).
        split: which studies are written for; not one that is learned from.
        label_fraction: share of the training subjects whose reports are used.
        controls: also score the four controls.
        seed: of new weights, the order, the subjects that keep their reports, and the bootstrap.
        findings: what the labeller looks for; None takes those of the store that it knows, but for `normal`.
        writer: sizes of the decoder and of what it sees.
        writer_from: a folder `writer` that an earlier run kept: it writes for the split, and nothing is trained.
        batch_size: studies a step.
        checks: how often, in training, the val split is asked which weights to keep.
        beams: of the search; 1 takes the likeliest piece each time.
        schedule: of training.
        draws: of the bootstrap.
        loader: how studies are read; None reads them whole.
    """

    mode: Literal["frozen", "finetune"] = "frozen"
    split: str = "test"
    label_fraction: float = Field(1.0, gt=0, le=1)
    controls: bool = True
    seed: int = Field(0, ge=0)
    findings: tuple[str, ...] | None = Field(None, min_length=1)
    writer: WriterConfig = WriterConfig()
    writer_from: Path | None = None
    batch_size: int = Field(16, ge=1)
    checks: int = Field(10, ge=1)
    beams: int = Field(3, ge=1)
    schedule: Schedule = Schedule(steps=600, warmup_steps=30, learning_rate=1e-3)
    draws: int = Field(DRAWS, ge=1)
    loader: LoaderConfig | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Job:
    """What all arms share."""

    config: Config
    store: StudySource
    loader: LoaderConfig
    pieces: Pieces
    progress: Progress | None

    @property
    def can_choose(self) -> bool:
        return any(row.split == CHOOSING for row in self.store.rows)

    def batches(self, split: str, *, training: bool = False) -> Loader:
        return Loader(self.store, self.loader, split=split, train=training)


def score(
    model: Recipe | Loaded,
    store: StudySource,
    config: Config,
    *,
    out: Path | None = None,
    progress: Progress | None = None,
) -> TaskResult:
    """Train a writer on the train split, choose on val, write for the settings' split, with controls.

    Where a folder `out` is given, the written reports and the true ones go to `out/reports.jsonl` (they are report
    text), and the writer to `out/writer` (see `heads/kept_writer.py`). With `writer_from` nothing is trained.

    Raises:
        ValueError: a split that is learned from or has no study with a report, an encoder whose maps cannot be seen, or
            a kept writer that does not go with the checkpoint or the store.
    """
    recipe, settings = opened(model, store, config.loader)
    # A kept writer reads as its card says.
    reading = settings if config.writer_from is None else None
    if config.writer_from is not None:
        written, rows, notes = _with_kept(recipe, store, config, config.writer_from)
    else:
        if config.split in ("train", CHOOSING, "all"):
            raise ValueError(f"split {config.split!r} is what the task learns from; score another, such as test")
        job = _plan(recipe, store, config, settings, progress)
        rows = tuple(row for row in job.store.rows if row.split == config.split)
        written, notes = _train_and_write(recipe, job, out=out)
    result = _score_told(written, rows, store, config)
    if out is not None:
        write_bytes(out / WRITTEN, _lines(rows, written).encode())
    split = side_of(config.split)
    unread = unread_note(recipe, store, split, trained=True)
    return result.under(config).but(
        split=config.split,
        model=type(recipe).__name__,
        simulated=is_simulated(store, split),
        notes=(*seen_note(model, store, split, reading), *unread, *notes, *result.notes),
    )


def _train_and_write(recipe: Recipe, job: _Job, *, out: Path | None) -> tuple[dict[str, list[str]], list[str]]:
    """What each arm's writer wrote for the split, and how they were trained; the model's is kept in `out/writer`."""
    config, store = job.config, job.store
    writer, said = _fit(recipe, job, arm=0)
    if out is not None:
        save_writer(
            out / KEPT,
            writer,
            recipe,
            plan=store.plan,
            loader=job.loader,
            simulated=is_simulated(store, "train"),
            learned_from={row.subject for row in store.rows if row.split in ("train", CHOOSING)},
        )
    written = {MODEL: write_split(writer, job.batches(config.split), beams=config.beams)}
    notes = [f"{MODEL}: {said}"]
    if config.controls:
        written[IMAGE_REMOVED] = write_split(writer, job.batches(config.split), beams=config.beams, blind=True)
        blank, said = _fit(from_scratch(recipe, seed=config.seed), job, arm=1)
        written[SCRATCH] = write_split(blank, job.batches(config.split), beams=config.beams)
        notes.append(f"{SCRATCH}: {said}")
        written[NEAREST] = _nearest(recipe, job)
        taught = [row.report or "" for row in store.rows if row.split == "train"]
        usual, normal = usual_normal(taught, _findings(store, config))
        written[NORMAL] = [usual] * len(written[MODEL])
        notes.append(f"{NORMAL}: the most usual of {normal} training reports that name no finding.")
    return written, notes


def _with_kept(
    recipe: Recipe, store: StudySource, config: Config, folder: Path
) -> tuple[dict[str, list[str]], tuple[StudyRow, ...], list[str]]:
    """What a kept writer writes for every study of the split, with a report of its own or without."""
    card, writer = read_writer_card(folder), load_writer(folder)
    refuse_other_plan(card.plan, store.plan)
    refuse_other_encoder(writer, recipe)
    split = side_of(config.split)
    rows = tuple(row for row in store.rows if split in (None, row.split) and set(row.sequences) & set(card.sequences))
    if not rows:
        raise ValueError(f"no study of split {config.split!r} has any of the sequences {', '.join(card.sequences)}")
    loader = (config.loader or card.loader).but(sequences=card.sequences, batch_size=config.batch_size)
    batches = partial(Loader, PartOfStore(store, rows), loader, split=None, train=False)
    writer.to(config.schedule.fabric().device)
    written = {MODEL: write_split(writer, batches(), beams=config.beams)}
    notes = ["Written by a kept writer; nothing was trained, so the controls that are trained were not scored."]
    if config.controls:
        written[IMAGE_REMOVED] = write_split(writer, batches(), beams=config.beams, blind=True)
    subjects = {row.subject for row in rows}
    seen = card.count_seen(subjects)
    if seen:
        notes.append(f"NOT HELD OUT: the writer learned from reports of {seen} of the {len(subjects)} subjects.")
    return written, rows, notes


def _score_told(
    written: Mapping[str, Sequence[str]], rows: Sequence[StudyRow], store: StudySource, config: Config
) -> TaskResult:
    """Scores over the studies that have a report; rows stand in the order in which was written."""
    told = [at for at, row in enumerate(rows) if row.report]
    if not told:
        return TaskResult(
            task="report_generation",
            split="",
            subjects=len({row.subject for row in rows}),
            studies=len(rows),
            notes=("No study has a report of its own: what was written is not scored.",),
        )
    return generation_result(
        {arm: [texts[at] for at in told] for arm, texts in written.items()},
        [rows[at].report or "" for at in told],
        findings=_findings(store, config),
        subjects=np.unique([rows[at].subject for at in told], return_inverse=True)[1],
        studies=tuple(rows[at].key for at in told),
        draws=config.draws,
        seed=config.seed,
    )


def usual_normal(reports: Sequence[str], findings: Sequence[str]) -> tuple[str, int]:
    """The most usual of the reports that name no finding as present or uncertain, and how many do not.

    The one that occurs most often; of equals, the one whose sentences occur most often on average. Where every report
    names a finding, of all of them.
    """
    silent = [
        report for report in reports if not {"present", "uncertain"} & set(label_report(report, findings).values())
    ]
    bodies = [report_body(report) for report in silent or reports]
    times = Counter(bodies)
    said = Counter(sentence for body in bodies for sentence in set(sentences(body)))

    def usual(body: str) -> tuple[int, float, str]:
        return times[body], float(np.mean([said[sentence] for sentence in set(sentences(body))] or [0])), body

    chosen = max(times, key=usual)
    return next(report for report in silent or reports if report_body(report) == chosen), len(silent)


def _plan(
    recipe: Recipe, store: StudySource, config: Config, settings: LoaderConfig, progress: Progress | None
) -> _Job:
    """The studies that have a report and keep it; what can be refused before training is refused here."""
    told = tuple(row for row in store.rows if row.report and set(row.sequences) & set(recipe.sequences))
    splits = Counter(row.split for row in told)
    for needed in ("train", config.split):
        if not splits[needed]:
            raise ValueError(
                f"no study of split {needed!r} has a report and any of the sequences {', '.join(recipe.sequences)}; "
                f"studies with both: {', '.join(f'{splits[name]} {name}' for name in sorted(splits)) or 'none'} "
                "(reports come with `tomoglot ingest --reports`)"
            )
    part = PartOfStore(store, told)
    kept = fewer_labels(part, fraction=config.label_fraction, seed=config.seed)
    # What would else be refused after the training only.
    _findings(store, config)
    score_texts(["a word"], ["a word"])
    taught = [row.report or "" for row in kept.rows if row.split == "train"]
    return _Job(
        config=config,
        store=kept,
        loader=settings.but(sequences=recipe.sequences, batch_size=config.batch_size, seed=config.seed),
        pieces=Pieces(taught, TextEncoder.Config().build().tokenizer),
        progress=progress,
    )


def _findings(store: StudySource, config: Config) -> tuple[str, ...]:
    """What the labeller looks for in reports."""
    known = {name for names in LISTS.values() for name in names}
    asked = config.findings or tuple(name for name in store.findings if name in known - {"normal"})
    unknown = [name for name in asked if name not in known]
    if unknown or not asked:
        what = (
            f"the labeller knows no finding {', '.join(unknown)}" if unknown else "the store labels no finding it knows"
        )
        lists = "; ".join(f"{organ}: {', '.join(names)}" for organ, names in LISTS.items())
        raise ValueError(f"{what}; set findings to some of {lists}")
    return asked


def _fit(recipe: Recipe, job: _Job, *, arm: int) -> tuple[ReportWriter, str]:
    """One arm's writer, trained, and in words how."""
    config, frozen = job.config, job.config.mode == "frozen"
    device = config.schedule.fabric().device
    sizes = config.writer.but(aligned=config.writer.aligned and has_text_side(recipe))
    sight = Sight(recipe, maps=sizes.maps, cells=sizes.cells, aligned=sizes.aligned).to(device).eval()
    taught = job.batches("train")
    some = taught if frozen else islice(taught, max(1, CALIBRATED // config.batch_size))
    shelf = Shelf.of(sight, some, device=device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        writer = ReportWriter(sight, job.pieces, sizes, shelf=shelf, frozen=frozen)
    batches: Iterable[Batch] = job.batches("train", training=True)
    held_out: Callable[[], Iterable[Batch]] | None = partial(job.batches, CHOOSING) if job.can_choose else None
    if frozen:
        batches = shelf.endless(config.batch_size, seed=config.seed)
        writer.remember(shelf)
    if frozen and job.can_choose:
        choosing = Shelf.of(sight, job.batches(CHOOSING), device=device)
        writer.remember(choosing)
        held_out = partial(choosing.once, config.batch_size)
    report = job.progress
    steps = config.schedule.steps
    chosen = fit_reader(
        writer,
        batches,
        config.schedule,
        held_out=held_out,
        checks=config.checks,
        seed=config.seed,
        progress=None if report is None else lambda at: report(arm * steps + at, (1 + config.controls) * steps),
    )
    return writer, (
        f"encoder {config.mode}, {taught.num_studies} reports to learn from, {len(job.pieces)} pieces; "
        f"{chosen.said(steps, 'nats a piece')}"
    )


def _nearest(recipe: Recipe, job: _Job) -> list[str]:
    """For each study, the report of the training study whose volumes are most alike by the encoder's features."""
    train_side, asked = (
        embed_split(recipe, job.store, split=split, loader=job.loader, wanted="features")
        for split in ("train", job.config.split)
    )
    reports = {row.key: row.report or "" for row in job.store.rows}
    known = volume_vectors(train_side)
    likeness = volume_vectors(asked, reference=train_side) @ known.T
    return [reports[train_side.studies[at]] for at in likeness.argmax(axis=1)]


def _lines(rows: Sequence[StudyRow], written: Mapping[str, Sequence[str]]) -> str:
    """One line a study: its true report, and what each arm wrote."""
    return "".join(
        json.dumps(
            {
                "study": row.key,
                "true": row.report,
                "written": {arm: texts[at] for arm, texts in written.items()},
            },
            ensure_ascii=False,
            sort_keys=True,
        )
        + "\n"
        for at, row in enumerate(rows)
    )
