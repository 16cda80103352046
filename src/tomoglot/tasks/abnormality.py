"""Abnormality from a pre-trained encoder: a linear probe on frozen features, or fine-tuning of all of it.

Any finding may be there (`multi_label`), or exactly one of several is (`one_of`). Trained on the train split, settings
chosen on the val split, scored once on the test split, any subset of sequences a study. Beside the score stand the same
method on the encoder from scratch, and with the image removed; and where asked every subset of the sequences, and
random losses of them. What is fine-tuned is `heads/detector.py`; the probe is `heads/probe.py`.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from tomoglot.batches.batch import Batch
from tomoglot.batches.loader import Loader, LoaderConfig, StudySource
from tomoglot.checkpoint import Loaded
from tomoglot.recipes.recipe import Recipe
from tomoglot.schedule import Schedule
from tomoglot.tasks.classification import class_of
from tomoglot.tasks.embeddings import (
    Progress,
    StoreEmbeddings,
    embed_split,
    from_scratch,
    is_simulated,
    opened,
    seen_note,
    unread_note,
)
from tomoglot.tasks.heads.detector import Detector, DetectorSettings, save_detector
from tomoglot.tasks.heads.kept_probe import save_probe
from tomoglot.tasks.heads.probe import Fitted, Pooling, probe_result
from tomoglot.tasks.labels import PartOfStore, fewer_labels
from tomoglot.tasks.scores.detection_scores import choose_thresholds, result_of
from tomoglot.tasks.scores.intervals import DRAWS
from tomoglot.tasks.scores.scoring import Truth, read_studies
from tomoglot.tasks.scores.shown import View, judge_views, plan_subsets, score_views
from tomoglot.tasks.task import IMAGE_REMOVED, MODEL, SCRATCH, TaskResult
from tomoglot.tasks.zero_shot import SUBSET_DRAWS, SUBSET_LIMIT
from tomoglot.training import Trainable, TrainState, train

VERB: Literal["transfer"] = "transfer"
CHOOSING = "val"


class Config(DetectorSettings):
    """How to learn and to score; the network is set by `DetectorSettings`.

    Attributes:
        mode: `probe` (frozen features) or `finetune` (encoder and head).
        findings: which of the store's findings are asked, as a list or with commas; None asks all. With `one_of` they
            are the classes: a study that has none or more than one of them is left out.
        split: which studies are scored; not one that is learned from.
        label_fraction: share of the training subjects whose labels are used.
        controls: also score the same method from scratch, and with the image removed.
        seed: of the bootstrap, of the subjects that keep their labels and of the from-scratch weights.
        pooling: one vector a study from those of its sequences, for the probe.
        drop_sequence_probability: of hiding an acquired sequence while fine-tuning; 0 keeps what the loader says.
        subsets: also score every subset of the sequences (of each organ's, where there are several).
        subset_limit: at most so many of them, an organ.
        missing: also score with these shares of the acquired sequences hidden at random.
        schedule: of fine-tuning.
        draws: of the bootstrap.
        loader: how studies are read; None reads them whole.
    """

    mode: Literal["probe", "finetune"] = "probe"
    findings: tuple[str, ...] | None = Field(None, min_length=1)
    split: str = "test"
    label_fraction: float = Field(1.0, gt=0, le=1)
    controls: bool = True
    seed: int = Field(0, ge=0)
    pooling: Pooling = "mean_max"
    drop_sequence_probability: float = Field(0.0, ge=0, lt=1)
    subsets: bool = False
    subset_limit: int = Field(SUBSET_LIMIT, ge=1)
    missing: tuple[float, ...] = ()
    schedule: Schedule = Schedule(steps=200, warmup_steps=10, learning_rate=3e-4)
    draws: int = Field(DRAWS, ge=1)
    loader: LoaderConfig | None = None

    @field_validator("findings", mode="before")
    @classmethod
    def _split_commas(cls, value: Any) -> Any:
        return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        tuned = self.fused or self.form == "one_of" or self.subsets or self.missing or self.text_loss
        if self.mode == "probe" and tuned:
            raise ValueError(
                "fusion, aggregation, text_loss, form='one_of', subsets and missing need mode='finetune'; a probe of "
                "classes is `transfer classification --mode probe`"
            )
        if any(not 0 < share < 1 for share in self.missing):
            raise ValueError(f"missing: shares lie between 0 and 1, got {', '.join(map(str, self.missing))}")
        if self.form == "one_of" and len(self.findings or ()) < 2:
            raise ValueError("form 'one_of' needs two findings or more that exclude each other: set findings")
        return self


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Job:
    """What all arms share: the studies that are scored and chosen on, those that teach, and what is asked of them."""

    config: Config
    store: StudySource
    training: StudySource
    findings: tuple[str, ...]
    loader: LoaderConfig
    notes: tuple[str, ...]

    def batches(self, split: str) -> Loader:
        return Loader(self.store, self.loader, split=split, train=False, findings=self.findings)


def score(
    model: Recipe | Loaded,
    store: StudySource,
    config: Config,
    *,
    out: Path | None = None,
    progress: Progress | None = None,
) -> TaskResult:
    """Train on the train split, choose on val, score on the settings' split, with controls.

    With `out`, what was learned is written as the folder `probe` or `detector`, which `external` scores elsewhere.

    Raises:
        ValueError: a split without studies, a split that is learned from, a store without labels, a finding that it
            does not label, or a class that the train split does not hold.
    """
    if config.split in ("train", CHOOSING, "all"):
        raise ValueError(f"split {config.split!r} is what the task learns from; score another, such as test")
    if not store.findings:
        raise ValueError("the store labels no finding; give label columns (label:<finding>) to ingest")
    unknown = [name for name in config.findings or () if name not in store.findings]
    if unknown:
        raise ValueError(f"findings: the store labels no {', '.join(unknown)}; it labels {', '.join(store.findings)}")
    recipe, settings = opened(model, store, config.loader)
    if config.mode == "probe":
        result, fitted = _probed(recipe, store, config, settings, progress)
        if out is not None:
            _save_probe(out / "probe", fitted, model, store)
    else:
        result = _finetuned(recipe, _plan(recipe, store, config, settings), out=out, progress=progress)
    unread = unread_note(recipe, store, config.split, trained=config.mode == "finetune")
    return result.under(config).but(
        split=config.split,
        model=type(recipe).__name__,
        simulated=is_simulated(store, config.split),
        notes=(*seen_note(model, store, config.split, settings), *unread, *result.notes),
    )


def finetune(
    recipe: Recipe,
    store: StudySource,
    schedule: Schedule,
    *,
    loader: LoaderConfig,
    settings: DetectorSettings | None = None,
    findings: tuple[str, ...] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Detector:
    """Train a copy of the recipe's encoder and what lies over it on the train split; the recipe is left as it was.

    The detector comes back in evaluation mode, on the schedule's device.
    """
    reading = loader.but(sequences=recipe.sequences, seed=seed)
    findings = tuple(store.findings) if findings is None else findings
    fabric = schedule.fabric()
    fabric.launch()
    # Only the net's own draws (new weights, dropout) come from the global generator, and it is put back.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probe_batch = next(iter(Loader(store, reading.but(batch_size=1), split="train", train=False)))
        with torch.no_grad():
            width = copy.deepcopy(recipe).cpu().eval().encode(probe_batch).shape[-1]
        net = Detector(copy.deepcopy(recipe).cpu(), settings or DetectorSettings(), findings, embedding=width).to(
            fabric.device
        )
        module: Trainable = net
        assert module is net
        batches = Loader(store, reading, split="train", train=True, findings=findings)
        for step in train(net, batches, schedule, fabric=fabric, state=TrainState.fresh(net, schedule)):
            if progress is not None:
                progress(step.number, schedule.steps)
    return net.eval()


def _plan(recipe: Recipe, store: StudySource, config: Config, settings: LoaderConfig) -> _Job:
    """Which studies teach and are scored; what can be refused before training is refused here."""
    findings = config.findings or tuple(store.findings)
    drop = {"drop_sequence_probability": config.drop_sequence_probability} if config.drop_sequence_probability else {}
    loader = settings.but(sequences=recipe.sequences, **drop)
    notes: tuple[str, ...] = ()
    if config.form == "one_of":
        found = {row.key: class_of(row.labels, findings) for row in store.rows}
        store = PartOfStore(store, tuple(row for row in store.rows if isinstance(found[row.key], int)))
        numbers = Counter(found[row.key] for row in store.rows if row.split == "train")
        lacking = [name for at, name in enumerate(findings) if not numbers[at]]
        if lacking:
            raise ValueError(f"no study to learn from is {', '.join(lacking)} alone of {', '.join(findings)}")
        left = Counter(reason for reason in found.values() if isinstance(reason, str))
        counted = ", ".join(f"{numbers[at]} {name}" for at, name in enumerate(findings))
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(left.items())) or "none"
        notes = (f"Classes, train: {counted}. Studies left out: {reasons}.",)
    training = fewer_labels(store, fraction=config.label_fraction, seed=config.seed)
    return _Job(config=config, store=store, training=training, findings=findings, loader=loader, notes=notes)


def _probed(
    recipe: Recipe, store: StudySource, config: Config, settings: LoaderConfig, progress: Progress | None
) -> tuple[TaskResult, Fitted]:
    splits = ("train", CHOOSING, config.split)

    def embed(recipe: Recipe) -> dict[str, StoreEmbeddings]:
        return {
            side: embed_split(recipe, store, split=side, loader=settings, wanted="features", progress=progress)
            for side in splits
        }

    fitted: list[Fitted] = []
    result = probe_result(
        embed(recipe),
        embed(from_scratch(recipe, seed=config.seed)) if config.controls else None,
        splits=splits,
        pooling=config.pooling,
        label_fraction=config.label_fraction,
        findings=config.findings,
        draws=config.draws,
        seed=config.seed,
        keep=fitted.append,
    )
    return result, fitted[0]


def _finetuned(recipe: Recipe, job: _Job, *, out: Path | None, progress: Progress | None) -> TaskResult:
    config = job.config
    names = (MODEL, SCRATCH) if config.controls else (MODEL,)
    said: dict[str, NDArray[np.float64]] = {}
    thresholds: dict[str, dict[str, float]] = {}
    for number, name in enumerate(names):
        start = recipe if name == MODEL else from_scratch(recipe, seed=config.seed)
        net = finetune(
            start,
            job.training,
            config.schedule,
            loader=job.loader,
            settings=config,
            findings=job.findings,
            seed=config.seed,
            progress=None if progress is None else partial(_advance, progress, number, len(names)),
        )
        said[name], truth = predict_split(net, job)
        thresholds[name] = _thresholds(net, job)
        if name != MODEL:
            continue
        if config.controls:
            said[IMAGE_REMOVED], _ = predict_split(net, job, remove_image=True)
            thresholds[IMAGE_REMOVED] = thresholds[MODEL]
        subsets, more, told = _score_shown(net, job, truth)
        if out is not None:
            _save(out / "detector", net, job, thresholds[MODEL])
    result = result_of(
        said,
        truth,
        task="abnormality-finetune",
        form=config.form,
        thresholds=thresholds,
        draws=config.draws,
        seed=config.seed,
    )
    return result.but(
        scores=(*result.scores, *more),
        subsets=subsets,
        notes=(*result.notes, *job.notes, *_notes(job, thresholds[MODEL]), *told),
    )


def predict_split(
    net: Detector, job: _Job, *, split: str | None = None, remove_image: bool = False
) -> tuple[NDArray[np.float64], Truth]:
    """Probabilities (n, f) of a fine-tuned net, and what is known of the studies."""
    return _read(net, job, lambda batch: net.probabilities(net(batch)), split=split, blind=remove_image)


def _read(
    net: Detector,
    job: _Job,
    what: Callable[[Batch], torch.Tensor],
    *,
    split: str | None = None,
    blind: bool = False,
) -> tuple[NDArray[np.float64], Truth]:
    device = next(net.parameters()).device
    return read_studies(
        job.batches(split or job.config.split),
        lambda batch: what(batch.to(device)),
        findings=job.findings,
        blind=blind,
    )


def _thresholds(net: Detector, job: _Job) -> dict[str, float]:
    """Of each finding, on the val split; classes need none."""
    if job.config.form == "one_of" or not any(row.split == CHOOSING for row in job.store.rows):
        return {}
    return choose_thresholds(*predict_split(net, job, split=CHOOSING))


def _score_shown(net: Detector, job: _Job, truth: Truth) -> tuple[Any, list[Any], tuple[str, ...]]:
    """Scores of the subsets and of the random losses that are asked for."""
    config = job.config
    if not (config.subsets or config.missing):
        return (), [], ()
    acquired = _acquired(job, truth.studies)
    planned = plan_subsets(truth, acquired, net.recipe.sequences, limit=config.subset_limit)
    views = planned if config.subsets else []
    organs = dict.fromkeys(view.organ for view in planned)
    views += [View(organ=organ, hidden=share, seed=config.seed) for organ in organs for share in config.missing]
    given, _ = _read(net, job, lambda batch: judge_views(net, batch, views))
    return score_views(views, given.transpose(1, 0, 2), truth, draws=min(config.draws, SUBSET_DRAWS), seed=config.seed)


def _acquired(job: _Job, studies: Sequence[str]) -> NDArray[np.bool_]:
    assert job.loader.sequences is not None
    has = {row.key: set(row.sequences) for row in job.store.rows}
    return np.array([[name in has[study] for name in job.loader.sequences] for study in studies])


def _save(folder: Path, net: Detector, job: _Job, thresholds: dict[str, float]) -> None:
    learned = {row.subject for row in job.training.rows if row.split == "train"}
    save_detector(
        folder,
        net,
        plan=job.store.plan,
        loader=job.loader,
        simulated=is_simulated(job.store, "train"),
        learned_from=learned,
        thresholds=thresholds,
    )


def _save_probe(folder: Path, fitted: Fitted, model: Recipe | Loaded, store: StudySource) -> None:
    people = {row.key: row.subject for row in store.rows}
    save_probe(
        folder,
        fitted,
        encoder=model.card.weights_digest if isinstance(model, Loaded) else "",
        plan=store.plan,
        simulated=is_simulated(store, "train"),
        learned_from={people[study] for study in fitted.taught.studies},
    )


def _notes(job: _Job, thresholds: dict[str, float]) -> tuple[str, ...]:
    config = job.config
    studies = sum(row.split == "train" for row in job.training.rows)
    said = [f"{config.schedule.steps} steps on {studies} labelled studies, both arms alike."]
    if config.form == "multi_label":
        lacking = [name for name in job.findings if name not in thresholds]
        rest = f"; 0.5 for {', '.join(lacking)}" if lacking else ""
        said.append(f"Balanced accuracy and F1 at each arm's thresholds of the {CHOOSING} split{rest}.")
    return tuple(said)


def _advance(progress: Progress, before: int, arms: int, done: int, total: int) -> None:
    progress(before * total + done, arms * total)
