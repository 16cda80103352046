"""Classification of findings from the image, from the report, and from both: does the image add to what is written?

One linear probe a finding (`heads/probe.py`) on frozen vectors: the image's (mean and maximum over acquired sequences),
the report's, and both side by side, which is the model's row. For a recipe in which a text reads the volumes
(`Recipe.fuse`, MPMA) also the fused vector alone. Beside them stand the same probe with somebody else's report, with an
image encoder from scratch, and with the image removed.

A whole report says nearly all that its labels say: labels of simulated studies are what their reports were written
from, and mined labels were read from the very report. So a share of the sentences can be hidden, or, for each finding,
every sentence that names it: then the question is what the image adds to an incomplete report. Which sentence names a
finding is told by rules (`studies/findings.py`). What remains may still give it away ("oedema about the lesion").

The paper of MPMA names multi-modal uses and gives no recipe for them; everything here is ours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from tomoglot.batches.batch import stack
from tomoglot.batches.loader import Loader, LoaderConfig, StudySource
from tomoglot.checkpoint import Loaded
from tomoglot.config import Settings
from tomoglot.recipes.recipe import Recipe
from tomoglot.studies.findings import LISTS, label_sentence
from tomoglot.studies.report import sentences, spoken
from tomoglot.tasks.embeddings import (
    Progress,
    StoreEmbeddings,
    embed_split,
    from_scratch,
    has_text_side,
    is_simulated,
    opened,
    seen_note,
    unread_note,
)
from tomoglot.tasks.heads.probe import choose_probe, pool_sequences
from tomoglot.tasks.labels import PartOfStore, keep_subjects
from tomoglot.tasks.queries.prompt_table import text_encoder
from tomoglot.tasks.queries.searches import embed_texts
from tomoglot.tasks.scores.detection_scores import choose_thresholds, result_of
from tomoglot.tasks.scores.intervals import DRAWS
from tomoglot.tasks.scores.scoring import Truth, truth_of
from tomoglot.tasks.task import IMAGE_REMOVED, MODEL, SCRATCH, TaskResult

VERB: Literal["transfer"] = "transfer"
IMAGE_ONLY, REPORT_ONLY, ANOTHERS = "image only", "report only", "another's report"
FUSED, FUSED_BLANK = "fused", "fused, image removed"
NOTHING_LEFT = "No report."
FITTING, CHOOSING = "train", "val"
# By split.
Vectors = Mapping[str, NDArray[np.floating]]
Texts = Mapping[str, Sequence[str]]


class Config(Settings):
    """What is shown, and how it is learned.

    Attributes:
        split: which studies are scored; not one that is learned from.
        controls: also the rows with somebody else's report, from scratch, and with the image removed.
        seed: of the sentences hidden, the reports exchanged, the subjects that keep their labels, and the bootstrap.
        label_fraction: share of the training subjects whose labels are used.
        findings: which ones; None takes all of the store.
        hidden_sentences: share of each report's sentences that is hidden, in every split; those at 0.3 are among those
            at 0.6.
        without_finding: for each finding, hide every sentence that names it, present or absent; then the share.
        text: vectors of reports by the recipe's "own" text side (the "packaged" encoder where it has none).
        fused: also the fused vector, where the recipe has one.
        draws: of the bootstrap.
        loader: how studies are read; None reads them whole.
    """

    split: str = "test"
    controls: bool = True
    seed: int = Field(0, ge=0)
    label_fraction: float = Field(1.0, gt=0, le=1)
    findings: tuple[str, ...] | None = Field(None, min_length=1)
    hidden_sentences: float = Field(0.0, ge=0, le=1)
    without_finding: bool = False
    text: Literal["own", "packaged"] = "own"
    fused: bool = True
    draws: int = Field(DRAWS, ge=1)
    loader: LoaderConfig | None = None

    @property
    def splits(self) -> tuple[str, str, str]:
        """Learned from, chosen on, scored."""
        return FITTING, CHOOSING, self.split


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Job:
    """What all groups of findings share."""

    recipe: Recipe
    store: PartOfStore
    config: Config
    loader: LoaderConfig
    images: Mapping[str, StoreEmbeddings]
    redrawn: Mapping[str, StoreEmbeddings] | None
    findings: tuple[str, ...]

    @property
    def groups(self) -> list[tuple[str, ...]]:
        """Findings that are asked of the same text."""
        return [(finding,) for finding in self.findings] if self.config.without_finding else [self.findings]


def score(
    model: Recipe | Loaded,
    store: StudySource,
    config: Config,
    *,
    out: Path | None = None,
    progress: Progress | None = None,
) -> TaskResult:
    """Probe the image, the report and both on the train split; score once on the settings' split, with controls.

    Nothing is written into `out`.

    Raises:
        ValueError: a split that is learned from, an unknown finding, a finding without rules where they are needed, or
            a split without reports.
    """
    job = _plan(model, store, config, progress)
    truths = {split: truth_of(job.images[split]).columns(job.findings) for split in config.splits}
    keep = keep_subjects(truths[FITTING].subjects, fraction=config.label_fraction, seed=config.seed)
    truths[FITTING] = truths[FITTING].rows(keep)
    said: dict[str, dict[str, list[NDArray[np.float64]]]] = {}
    notes: list[str] = []
    shown = [_texts(job, group) for group in job.groups]
    left = float(np.mean([share for _, share in shown]))
    given = _read(job, [texts for texts, _ in shown])
    for group, read in zip(job.groups, given, strict=True):
        known = {split: truth.columns(group) for split, truth in truths.items()}
        for arm, by_split in _probe(job, read, known, keep, notes=notes).items():
            for split, found in by_split.items():
                said.setdefault(split, {}).setdefault(arm, []).append(found)
    columns = {split: {arm: np.hstack(parts) for arm, parts in arms.items()} for split, arms in said.items()}
    thresholds = {arm: choose_thresholds(found, truths[CHOOSING]) for arm, found in columns[CHOOSING].items()}
    # Its probe is that of both.
    thresholds |= {ANOTHERS: thresholds[MODEL]}
    result = result_of(
        columns[config.split],
        truths[config.split],
        task="image_and_report",
        thresholds=thresholds,
        draws=config.draws,
        seed=config.seed,
    )
    about = (*seen_note(model, job.store, config.split, job.loader), *unread_note(job.recipe, job.store, config.split))
    return result.under(config).but(
        split=config.split,
        model=type(job.recipe).__name__,
        simulated=is_simulated(job.store, config.split),
        notes=(*about, *_notes(job, left), *result.notes, *notes),
    )


def hide_sentences(report: str, *, share: float, key: str, seed: int, without: Sequence[str] = ()) -> list[str]:
    """The sentences of a report's findings and impression that are left, in order.

    First every sentence that names one of the findings `without` goes, present, absent or in doubt; of the rest, a
    share that `key` and `seed` draw, the same ones first whatever the share.
    """
    spared = [
        sentence for sentence in sentences(spoken(report)) if not without or not label_sentence(sentence, without)
    ]
    digest = hashlib.sha256(f"{seed} {key}".encode()).digest()
    order = np.random.default_rng(list(digest[:8])).permutation(len(spared))
    hidden = set(order[: round(share * len(spared))].tolist())
    return [sentence for at, sentence in enumerate(spared) if at not in hidden]


def exchange(subjects: NDArray[np.integer], *, seed: int) -> NDArray[np.int64] | None:
    """For each study the row of a study of another subject, no row twice; None where one subject has half of them."""
    _, number, counts = np.unique(subjects, return_inverse=True, return_counts=True)
    if 2 * counts.max() > len(subjects):
        return None
    shuffled = np.random.default_rng(seed).permutation(len(counts))
    order = np.argsort(shuffled[number], kind="stable")
    taken = np.empty(len(subjects), dtype=np.int64)
    # A subject's studies lie side by side: no further apart than the most that anybody has.
    taken[order] = np.roll(order, counts.max())
    return taken


def _plan(model: Recipe | Loaded, store: StudySource, config: Config, progress: Progress | None) -> _Job:
    if config.split in (FITTING, CHOOSING, "all"):
        raise ValueError(f"split {config.split!r} is what the task learns from; score another, such as test")
    recipe, loader = opened(model, store, config.loader)
    findings = config.findings or tuple(store.findings)
    ruled = {name for names in LISTS.values() for name in names}
    for what, known in (("labelled", set(store.findings)), ("with rules", ruled)):
        unknown = [name for name in findings if name not in known]
        if unknown and (what == "labelled" or config.without_finding):
            listed = ", ".join(name for name in store.findings if name in known) or "none"
            raise ValueError(f"findings: {', '.join(unknown)} cannot be asked; {what} here: {listed}")
    rows = tuple(
        row
        for row in store.rows
        if row.report and spoken(row.report).strip() and {*row.sequences} & {*recipe.readable(store.sequences)}
    )
    lacking = [split for split in config.splits if not any(row.split == split for row in rows)]
    if lacking:
        raise ValueError(
            f"no study of split {', '.join(lacking)} has a report and a sequence that the recipe reads; give `tomoglot "
            "ingest` --reports"
        )
    part = PartOfStore(store, rows)

    def embed(one: Recipe) -> dict[str, StoreEmbeddings]:
        return {
            split: embed_split(one, part, split=split, loader=loader, wanted="features", progress=progress)
            for split in config.splits
        }

    return _Job(
        recipe=recipe.eval(),
        store=part,
        config=config,
        loader=loader,
        images=embed(recipe),
        redrawn=embed(from_scratch(recipe, seed=config.seed)) if config.controls else None,
        findings=findings,
    )


def _texts(job: _Job, group: tuple[str, ...]) -> tuple[Texts, float]:
    """What is left of every report, by split, and the mean share of their sentences that is."""
    config, reports = job.config, {row.key: row.report or "" for row in job.store.rows}
    without = group if config.without_finding else ()
    texts: dict[str, list[str]] = {}
    shares = []
    for split in config.splits:
        texts[split] = []
        for key in job.images[split].studies:
            left = hide_sentences(
                reports[key], share=config.hidden_sentences, key=key, seed=config.seed, without=without
            )
            shares.append(len(left) / max(1, len(sentences(spoken(reports[key])))))
            texts[split].append(" ".join(left) or NOTHING_LEFT)
    return texts, float(np.mean(shares))


def _read(job: _Job, shown: Sequence[Texts]) -> list[dict[str, Vectors]]:
    """What is made of the texts that each group of findings is shown: their vectors and, by arm, those fused.

    For all groups at once: with `without_finding` there is a group a finding, which share the volumes and many texts.
    """
    read: list[dict[str, Vectors]] = [{REPORT_ONLY: vectors} for vectors in _report_vectors(job, shown)]
    if job.config.fused and type(job.recipe).fuse is not Recipe.fuse:
        fused = {split: _fuse(job, split, [texts[split] for texts in shown]) for split in shown[0]}
        for row, arm in enumerate((FUSED, FUSED_BLANK)[: 1 + job.config.controls]):
            for at, vectors in enumerate(read):
                vectors[arm] = {split: its[row, :, at] for split, its in fused.items()}
    return read


def _probe(
    job: _Job,
    read: Mapping[str, Vectors],
    truths: Mapping[str, Truth],
    keep: NDArray[np.bool_],
    *,
    notes: list[str],
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Probabilities by arm, on the split that is chosen on and on the one that is scored."""
    config, splits = job.config, job.config.splits
    images = {split: pool_sequences(job.images[split], pooling="mean_max") for split in splits}
    reports = read[REPORT_ONLY]
    arms: dict[str, Vectors] = {MODEL: _join(images, reports), IMAGE_ONLY: images, **read}
    if job.redrawn is not None:
        redrawn = {split: pool_sequences(job.redrawn[split], pooling="mean_max") for split in splits}
        arms[SCRATCH] = _join(redrawn, reports)
        arms[IMAGE_REMOVED] = _join({split: job.images[split].acquired.astype(np.float64) for split in splits}, reports)
    found: dict[str, dict[str, NDArray[np.float64]]] = {}
    for arm, vectors in arms.items():
        probe, said = choose_probe({**vectors, FITTING: vectors[FITTING][keep]}, truths, splits)
        found[arm] = {split: probe.predict(vectors[split]) for split in (CHOOSING, config.split)}
        asked = f" ({', '.join(truths[FITTING].findings)})" if config.without_finding else ""
        notes += [f"{arm}{asked}: C = {probe.inverse_penalty:g} on {int(keep.sum())} labelled studies.", *said]
        others = exchange(truths[config.split].subjects, seed=config.seed)
        if arm == MODEL and config.controls and others is not None:
            swapped = np.hstack([images[config.split], reports[config.split][others]])
            found[ANOTHERS] = {config.split: probe.predict(swapped)}
    return found


def _join(first: Vectors, second: Vectors) -> Vectors:
    return {split: np.hstack([first[split], second[split]]) for split in first}


def _report_vectors(job: _Job, shown: Sequence[Texts]) -> list[Vectors]:
    """A vector a report, for each group; each distinct text is read once, beside others of its length."""
    distinct = sorted({text for texts in shown for its in texts.values() for text in its}, key=lambda text: len(text))
    if job.config.text == "own" and has_text_side(job.recipe):
        vectors = embed_texts(job.recipe, distinct)
    else:
        vectors = text_encoder(job.recipe).embed(tuple(distinct)).double().cpu().numpy()
    place = {text: at for at, text in enumerate(distinct)}
    return [{split: vectors[[place[text] for text in its]] for split, its in texts.items()} for texts in shown]


def _fuse(job: _Job, split: str, shown: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """Fused vectors of the studies of a split with the text of each group, in the order of its embeddings.

    As they are and, with controls, with their image removed (a, n, g, f): in one pass, since encoding their texts is
    most of the work.
    """
    said = dict(zip(job.images[split].studies, zip(*shown, strict=True), strict=True))
    device = next(job.recipe.parameters()).device
    reading = job.loader.but(sequences=job.recipe.readable(job.store.sequences))
    batches = Loader(job.store, reading, split=split, train=False)
    found = []
    with torch.inference_mode():
        for batch in batches:
            moved = batch.to(device)
            arms = [moved, replace(moved, volumes=torch.zeros_like(moved.volumes))][: 1 + job.config.controls]
            given = stack(arms)
            fused = job.recipe.fuse(given, [said[study] for study in given.studies])
            found.append(fused.unflatten(0, (len(arms), len(batch), len(shown))).double().cpu().numpy())
    return np.concatenate(found, axis=1)


def _notes(job: _Job, left: float) -> tuple[str, ...]:
    """What the numbers leave out."""
    config = job.config
    own = config.text == "own" and has_text_side(job.recipe)
    mined = sorted({name for row in job.store.rows for name in row.labels_mined} & set(job.findings))
    named = "every sentence that names the finding asked, and then " if config.without_finding else ""
    hidden = f"Hidden: {named}{100 * config.hidden_sentences:g} % of the sentences; {100 * left:.0f} % are left."
    source = "the text side of the recipe" if own else "the packaged text encoder"
    notes = [
        "The model's row is both, the image's vector beside the report's. Report vectors are by "
        f"{source}, of findings and impression alone.",
        hidden if config.without_finding or config.hidden_sentences else "Nothing is hidden: reports are whole.",
        f"{ANOTHERS.capitalize()}: the probe of both is shown the report of another subject. {SCRATCH.capitalize()}: "
        f"the image's encoder is redrawn, the report's vector kept. {IMAGE_REMOVED.capitalize()}: the report, and "
        "which sequences were acquired.",
    ]
    if mined:
        notes.append(
            f"CIRCULAR: {', '.join(mined)} were mined from the very reports that are shown; rows with a report say how "
            "well the rules can be learned, not how well a finding is seen."
        )
    if any(row.simulated for row in job.store.rows):
        notes.append(
            "Labels of simulated studies are what their reports were written from: a whole report tells nearly all."
        )
    return tuple(notes)
