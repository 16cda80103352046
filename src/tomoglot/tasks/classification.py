"""Classification of studies from a pre-trained encoder: one finding or not, or which of several classes.

By fine-tuning of all of it, or by a linear probe on frozen features. The classes exclude each other. Trained on the
train split; the threshold (and a probe's penalty) chosen on the val split; scored once on another. Beside the score
stand the same method from scratch with the same budget, and with the image removed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tomoglot.batches.loader import LoaderConfig, StudySource
from tomoglot.checkpoint import Loaded
from tomoglot.config import Settings
from tomoglot.encoders.weights import Adaptation
from tomoglot.recipes.recipe import Recipe
from tomoglot.schedule import Schedule
from tomoglot.store.catalogue import StudyRow
from tomoglot.tasks.embeddings import Progress, from_scratch, is_simulated, opened, seen_note
from tomoglot.tasks.heads.classifier import (
    ChannelBody,
    Classifier,
    PooledBody,
    Reading,
    build_classifier,
    channel_encoder,
    fit_class_probe,
    fit_classifier,
    read_split,
)
from tomoglot.tasks.heads.segmenter import templates_of, zeros
from tomoglot.tasks.labels import PartOfStore, fewer_labels
from tomoglot.tasks.scores.detection_scores import score_classes
from tomoglot.tasks.scores.intervals import DRAWS, Statistic, macro_auroc
from tomoglot.tasks.scores.metrics import (
    auroc,
    average_precision,
    balanced_accuracy,
    best_threshold,
    f1,
    prevalence,
)
from tomoglot.tasks.scores.scoring import Truth, compare_with_controls, list_predictions, score_statistics
from tomoglot.tasks.task import IMAGE_REMOVED, MACRO, MODEL, SCRATCH, Score, TaskResult

VERB: Literal["transfer"] = "transfer"
INVERSE_PENALTIES = (0.001, 0.01, 0.1, 1.0)
CHOOSING = "val"


class Config(Settings):
    """How to learn and to score.

    Attributes:
        target: one finding (is it there?), or several that exclude each other (which is it?), as a list or with commas;
            a study that has none or more than one of several is left out, so name `normal` among them if it is one.
        mode: `finetune` (encoder and head) or `probe` (a linear one on frozen features).
        input: `channels` (all sequences in one encoder) or `pooled` (each by itself; mean and maximum).
        split: which studies are scored; not one that is learned from.
        controls: also score the same method from scratch, and with the image removed.
        seed: of new weights, the order, the subjects that keep their labels, and the bootstrap.
        label_fraction: share of the training subjects whose labels are used.
        balanced: every class is seen equally often, however rare (code: a class-balanced sampler).
        sequences: the channels, in order; None takes those of the recipe.
        absent: with channels, what fills a sequence that was not acquired: zeros, or the recipe's template.
        input_weights: with channels, how one input channel becomes many, see `encoders.weights.adapt_input`.
        from_sequence: with channels, whose encoder is taken, for a recipe with an encoder a sequence.
        schedule: of fine-tuning.
        draws: of the bootstrap.
        loader: how studies are read; None reads them whole.
    """

    target: str | tuple[str, ...] | None = None
    mode: Literal["finetune", "probe"] = "finetune"
    input: Literal["channels", "pooled"] = "channels"
    split: str = "test"
    controls: bool = True
    seed: int = Field(0, ge=0)
    label_fraction: float = Field(1.0, gt=0, le=1)
    balanced: bool = True
    sequences: tuple[str, ...] | None = Field(None, min_length=1)
    absent: Literal["zero", "template"] = "zero"
    input_weights: Adaptation = "mean"
    from_sequence: str | None = None
    schedule: Schedule = Schedule(steps=200, warmup_steps=10, learning_rate=3e-4)
    draws: int = Field(DRAWS, ge=1)
    loader: LoaderConfig | None = None

    def classes(self, findings: Sequence[str]) -> tuple[str, ...]:
        """The findings that are told: one, or several classes.

        Raises:
            ValueError: no target is set, or the store has no such finding.
        """
        told = self.target.split(",") if isinstance(self.target, str) else self.target or ()
        names = tuple(name.strip() for name in told if name.strip())
        listed = ", ".join(findings) or "none"
        if not names:
            raise ValueError(f"set target to one finding, or to several that exclude each other; labelled: {listed}")
        unknown = [name for name in names if name not in findings]
        if unknown or len(set(names)) < len(names):
            what = f"there is no finding {', '.join(unknown)}" if unknown else "a finding is named twice"
            raise ValueError(f"target: {what}; labelled: {listed}")
        return names


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Arm:
    """What one arm says of the val split and of the scored one (n, k), and what is known there."""

    scored: NDArray[np.float64]
    truth: Truth
    threshold: float = 0.5
    notes: tuple[str, ...] = field(default_factory=tuple)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Job:
    """What all arms share: `training` repeats rare classes, `plain` does not."""

    config: Config
    plain: Reading
    training: Reading
    notes: tuple[str, ...]

    @property
    def binary(self) -> bool:
        return len(self.plain.findings) == 1

    @property
    def can_choose(self) -> bool:
        return any(row.split == CHOOSING for row in self.plain.store.rows)


def score(
    model: Recipe | Loaded,
    store: StudySource,
    config: Config,
    *,
    out: Path | None = None,
    progress: Progress | None = None,
) -> TaskResult:
    """Train on the train split, choose on val, score on the settings' split, with controls.

    Nothing is written into `out`; what was said of each study is in the result.

    Raises:
        ValueError: no target, a split that is learned from, or a class that the train split does not hold.
    """
    if config.split in ("train", CHOOSING, "all"):
        raise ValueError(f"split {config.split!r} is what the task learns from; score another, such as test")
    recipe, settings = opened(model, store, config.loader)
    job = _plan(recipe, store, config, settings)
    fit = _fit_net if config.mode == "finetune" else _fit_probe
    arms = fit(recipe, job, pretrained=True, progress=progress)
    if config.controls:
        blank = from_scratch(recipe, seed=config.seed) if config.input == "pooled" else recipe
        arms |= {SCRATCH: fit(blank, job, pretrained=False, progress=progress)[MODEL]}
    ours = arms[MODEL]
    chance = {"draws": config.draws, "seed": config.seed}
    controls = {name: arm.scored for name, arm in arms.items() if name != MODEL}
    comparisons = compare_with_controls(ours.scored, controls, ours.truth, **chance)
    scores = [one for name, arm in arms.items() for one in _score(arm, name, **chance)]
    name = job.plain.findings[0] if job.binary else MACRO
    return TaskResult(
        task=f"classification-{config.mode}",
        split=config.split,
        model=type(recipe).__name__,
        simulated=is_simulated(store, config.split),
        subjects=len(np.unique(ours.truth.subjects)),
        studies=len(ours.truth.studies),
        scores=tuple(scores),
        comparisons=tuple(comparison.but(name=name) for comparison in comparisons),
        notes=(
            *seen_note(model, store, config.split, settings),
            *job.notes,
            *(f"{arm}: {said}" for arm, found in arms.items() for said in found.notes),
        ),
        predictions=list_predictions(ours.scored, ours.truth),
    ).under(config)


def class_of(labels: Mapping[str, float], classes: Sequence[str]) -> int | str:
    """Number of a study's class (with one class: 1 present, 0 absent), or in words why it has none."""
    if any(name not in labels for name in classes):
        return "not labelled"
    present = [at for at, name in enumerate(classes) if labels[name] > 0.5]
    if len(classes) == 1:
        return len(present)
    if len(present) == 1:
        return present[0]
    return "several classes" if present else "none of the classes"


def repeat_rare(rows: Sequence[StudyRow], classes: Sequence[int], *, seed: int) -> tuple[StudyRow, ...]:
    """Rows in which every class comes equally often: those of rarer classes are repeated, the remainder drawn."""
    rng = np.random.default_rng(seed)
    counts = Counter(classes)
    repeated: list[StudyRow] = []
    for number, count in sorted(counts.items()):
        own = [row for row, its in zip(rows, classes, strict=True) if its == number]
        times, rest = divmod(max(counts.values()), count)
        repeated += own * times + [own[at] for at in rng.permutation(count)[:rest]]
    return tuple(repeated)


def _plan(recipe: Recipe, store: StudySource, config: Config, settings: LoaderConfig) -> _Job:
    """Which studies have a class and keep their labels; what can be refused before training is refused here."""
    classes = config.classes(store.findings)
    sequences = config.sequences or recipe.sequences
    found = {row.key: class_of(row.labels, classes) for row in store.rows if set(row.sequences) & set(sequences)}
    usable = tuple(row for row in store.rows if isinstance(found.get(row.key), int))
    part = PartOfStore(store, usable)
    learned = [row for row in usable if row.split == "train"]
    kept = fewer_labels(part, fraction=config.label_fraction, seed=config.seed, usable=learned)
    training = [row for row in kept.rows if row.split == "train"]
    numbers = [int(found[row.key]) for row in training]
    names = ("absent", "present") if len(classes) == 1 else classes
    lacking = [name for number, name in enumerate(names) if number not in numbers]
    if lacking:
        raise ValueError(
            f"no study of the {len(training)} to learn from is {', '.join(lacking)} ({', '.join(classes)}); raise "
            "label_fraction, change the seed, or set another target"
        )
    others = tuple(row for row in kept.rows if row.split != "train")
    repeated = repeat_rare(training, numbers, seed=config.seed) if config.balanced else tuple(training)
    loader = settings.but(sequences=tuple(sequences), seed=config.seed)
    readings = [
        Reading(store=PartOfStore(store, rows), loader=loader, findings=classes)
        for rows in ((*others, *training), (*others, *repeated))
    ]
    counted = {
        split: Counter(found[row.key] for row in kept.rows if row.split == split)
        for split in ("train", CHOOSING, config.split)
    }
    shown = "; ".join(
        f"{split}: " + ", ".join(f"{count[number]} {name}" for number, name in enumerate(names))
        for split, count in counted.items()
    )
    reasons = Counter(reason for reason in found.values() if isinstance(reason, str))
    left = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items())) or "none"
    sampling = "classes seen equally often" if config.balanced else "classes as they come"
    notes = (
        f"Classes of {', '.join(classes)}: {shown}. Studies left out: {left}. {sampling.capitalize()}. "
        f"Sequences: {', '.join(sequences)}, {config.input}.",
    )
    return _Job(config=config, plain=readings[0], training=readings[1], notes=notes)


def _body(recipe: Recipe, job: _Job, *, pretrained: bool) -> tuple[ChannelBody | PooledBody, str]:
    """The encoder of an arm, and in words what of it was loaded. A `pooled` recipe comes as the arm needs it."""
    config = job.config
    if config.input == "pooled":
        return PooledBody(recipe), "the recipe's own encoder" if pretrained else "nothing was loaded"
    channels = job.plain.loader.sequences
    assert channels is not None
    encoder, coverage = channel_encoder(
        recipe,
        channels,
        pretrained=pretrained,
        how=config.input_weights,
        from_sequence=config.from_sequence,
        seed=config.seed,
    )
    # Templates are learned: the arm from scratch must do without them.
    templates = config.absent == "template" and pretrained
    stand_in = templates_of(recipe, config.schedule.fabric().device) if templates else zeros
    came = "nothing was loaded" if coverage is None else f"encoder weights: {coverage.describe()}"
    return ChannelBody(encoder, stand_in), f"absent sequences: {'template' if templates else 'zero'}; {came}"


def _fit_net(recipe: Recipe, job: _Job, *, pretrained: bool, progress: Progress | None) -> dict[str, _Arm]:
    config, device = job.config, job.config.schedule.fabric().device
    body, came = _body(recipe, job, pretrained=pretrained)
    net: Classifier = build_classifier(body.to(device), job.training, seed=config.seed, device=device)
    seconds = fit_classifier(net, job.training, config.schedule, progress=progress)
    said = (f"{config.schedule.steps} steps, {seconds:.0f} s; {came}.",)
    arms = {}
    for name in (MODEL, IMAGE_REMOVED) if pretrained and config.controls else (MODEL,):
        read = partial(read_split, net.probabilities, job.plain, device=device, blind=name == IMAGE_REMOVED)
        scored, truth = read(split=config.split)
        arm = _Arm(scored=scored, truth=truth, notes=said if name == MODEL else ())
        arms[name] = _with_threshold(arm, read(split=CHOOSING) if job.can_choose else None)
    return arms


def _fit_probe(recipe: Recipe, job: _Job, *, pretrained: bool, progress: Progress | None) -> dict[str, _Arm]:
    device = job.config.schedule.fabric().device
    body, came = _body(recipe, job, pretrained=pretrained)
    features = partial(read_split, body.to(device).eval(), job.plain, device=device)
    acquired = partial(read_split, lambda batch: batch.acquired.float(), job.plain)
    arms = {MODEL: _choose_probe(features, job, came=came)}
    if pretrained and job.config.controls:
        # What was acquired, and nothing else.
        arms[IMAGE_REMOVED] = _choose_probe(acquired, job, came="acquired flags only")
    return arms


def _choose_probe(read: partial[tuple[NDArray[np.float64], Truth]], job: _Job, *, came: str) -> _Arm:
    """The probe with the best (macro) AUROC on val; of equals, the one with the strongest penalty."""
    features, known = read(split="train")
    classes = known.labels[:, 0].astype(int) if job.binary else known.labels.argmax(axis=1)
    chosen = read(split=CHOOSING) if job.can_choose else None
    best, best_value = None, -np.inf
    for penalty in INVERSE_PENALTIES:
        probe = fit_class_probe(features, classes, inverse_penalty=penalty, balanced=job.config.balanced)
        if chosen is None:
            continue
        value = macro_auroc(probe.predict(chosen[0]), chosen[1].labels)(np.ones((1, len(chosen[0]))))[0]
        if np.isfinite(value) and value > best_value:
            best, best_value = (penalty, probe), value
    penalty, probe = best or (
        0.1,
        fit_class_probe(features, classes, inverse_penalty=0.1, balanced=job.config.balanced),
    )
    said = f"C = {penalty:g} " + ("chosen on val" if best else "not chosen but set, since val lacks a class")
    scored, truth = read(split=job.config.split)
    arm = _Arm(scored=probe.predict(scored), truth=truth, notes=(f"{said}; {came}.",))
    return _with_threshold(arm, None if chosen is None else (probe.predict(chosen[0]), chosen[1]))


def _with_threshold(arm: _Arm, chosen: tuple[NDArray[np.float64], Truth] | None) -> _Arm:
    """Of one finding, the threshold with the best balanced accuracy on val; several classes need none."""
    if arm.truth.labels.shape[1] > 1:
        return arm
    found = None if chosen is None else best_threshold(chosen[0][:, 0], chosen[1].labels[:, 0])
    note = "not chosen but set, since val lacks a class" if found is None else "chosen on val"
    threshold = 0.5 if found is None else found
    return replace(arm, threshold=threshold, notes=(*arm.notes, f"threshold {threshold:.3f} {note}."))


def _score(arm: _Arm, name: str, *, draws: int, seed: int) -> list[Score]:
    """AUROC, average precision, balanced accuracy and F1 of the finding; or macro, and of each class."""
    truth, given = arm.truth, arm.scored
    if len(truth.findings) > 1:
        return score_classes(given, truth, arm=name, draws=draws, seed=seed)
    labels, said = truth.labels[:, 0], given[:, 0]
    if labels.min() == labels.max():
        return []
    statistics: dict[str, Statistic] = {
        "auroc": partial(auroc, said, labels),
        "average_precision": partial(average_precision, said, labels),
        "balanced_accuracy": partial(balanced_accuracy, said, labels, threshold=arm.threshold),
        "f1": partial(f1, said, labels, threshold=arm.threshold),
    }
    return score_statistics(
        truth.findings[0],
        statistics,
        truth.subjects,
        prevalence=prevalence(labels),
        arm=name,
        draws=draws,
        seed=seed,
    )
