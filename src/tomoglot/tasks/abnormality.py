"""Multi-label abnormality from a pre-trained encoder: a linear probe on frozen features, or fine-tuning of all of it.

Trained on the train split, settings chosen on the val split, scored once on the test split, any subset of sequences a
study. Beside the score stand the same method on the encoder from scratch, and with the image removed.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from pydantic import Field
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional as F

from tomoglot.batches.batch import Batch
from tomoglot.batches.loader import Loader, LoaderConfig, StudySource
from tomoglot.checkpoint import Loaded
from tomoglot.config import Settings
from tomoglot.recipes.recipe import Recipe
from tomoglot.tasks.embeddings import (
    Progress,
    StoreEmbeddings,
    embed_split,
    from_scratch,
    is_simulated,
    opened,
    pool_acquired,
    seen_note,
)
from tomoglot.tasks.intervals import DRAWS, macro_auroc
from tomoglot.tasks.labels import fewer_labels, keep_subjects
from tomoglot.tasks.scoring import (
    Truth,
    compare_with_controls,
    list_predictions,
    read_studies,
    score_arm,
    truth_of,
    unscored_note,
)
from tomoglot.tasks.task import IMAGE_REMOVED, SCRATCH, TaskResult
from tomoglot.training import Schedule, Trainable, TrainState, train

Pooling = Literal["mean_max", "concat"]
Splits = tuple[str, str, str]
INVERSE_PENALTIES = (0.001, 0.01, 0.1, 1.0)
VERB: Literal["transfer"] = "transfer"
METRICS = ("auroc", "average_precision", "balanced_accuracy", "f1", "brier", "calibration_error")


class Config(Settings):
    """How to learn and to score.

    Attributes:
        mode: `probe` (frozen features) or `finetune` (encoder and head).
        split: which studies are scored; not one that is learned from.
        label_fraction: share of the training subjects whose labels are used.
        controls: also score the same method from scratch, and with the image removed.
        seed: of the bootstrap, of the subjects that keep their labels and of the from-scratch weights.
        pooling: one vector a study from those of its sequences, for the probe.
        schedule: of fine-tuning.
        draws: of the bootstrap.
        loader: how studies are read; None takes what the checkpoint's card says.
    """

    mode: Literal["probe", "finetune"] = "probe"
    split: str = "test"
    label_fraction: float = Field(1.0, gt=0, le=1)
    controls: bool = True
    seed: int = Field(0, ge=0)
    pooling: Pooling = "mean_max"
    schedule: Schedule = Schedule(steps=200, warmup_steps=10, learning_rate=3e-4)
    draws: int = Field(DRAWS, ge=1)
    loader: LoaderConfig | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A fitted linear probe: a scaler, and one classifier a finding or its constant share where one class was seen."""

    scaler: StandardScaler
    classifiers: tuple[LogisticRegression | float, ...]
    inverse_penalty: float

    def predict(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """Probabilities (n, f)."""
        scaled = self.scaler.transform(features)
        columns = [
            np.full(len(scaled), kind) if isinstance(kind, float) else kind.predict_proba(scaled)[:, 1]
            for kind in self.classifiers
        ]
        return np.stack(columns, axis=1)


def pool_sequences(
    embeddings: StoreEmbeddings, *, pooling: Pooling, fill: NDArray[np.floating] | None = None
) -> NDArray[np.float64]:
    """One vector a study: the mean and the maximum over acquired sequences (n, 2e), or all of them side by side.

    `concat` puts `fill` (c, e), the training mean, where a sequence was not acquired, and adds the acquired flags.
    """
    features, used = embeddings.features.astype(np.float64), embeddings.acquired[:, :, None]
    if pooling == "concat":
        assert fill is not None, "concat needs the training mean of each sequence"
        flat = np.where(used, features, fill).reshape(len(features), -1)
        return np.concatenate([flat, embeddings.acquired], axis=1)
    any_used = used.any(axis=1)
    mean = np.where(used, features, 0).sum(axis=1) / np.maximum(used.sum(axis=1), 1)
    highest = np.where(any_used, np.where(used, features, -np.inf).max(axis=1), 0)
    return np.concatenate([mean, highest], axis=1)


def sequence_means(embeddings: StoreEmbeddings) -> NDArray[np.float64]:
    """Mean vector of each sequence over the studies that have it: (c, e); zeros where none has."""
    used = embeddings.acquired[:, :, None]
    total = np.where(used, embeddings.features, 0).astype(np.float64).sum(axis=0)
    return np.asarray(total / np.maximum(used.sum(axis=0), 1))


def fit_probe(features: NDArray[np.floating], truth: Truth, *, inverse_penalty: float) -> Probe:
    """Logistic regression on standardised features, a finding at a time, from the studies where it is known."""
    scaler = StandardScaler().fit(features)
    scaled = scaler.transform(features)
    classifiers: list[LogisticRegression | float] = []
    for at in range(len(truth.findings)):
        rows = truth.labelled[:, at]
        labels = truth.labels[rows, at] > 0.5
        if labels.size == 0 or labels.all() or not labels.any():
            classifiers.append(float(labels.mean()) if labels.size else 0.5)
        else:
            # Features outnumber studies: the penalty decides, and a loose tolerance costs nothing.
            classifiers.append(LogisticRegression(C=inverse_penalty, max_iter=5000, tol=1e-3).fit(scaled[rows], labels))
    return Probe(scaler=scaler, classifiers=tuple(classifiers), inverse_penalty=inverse_penalty)


def choose_probe(
    features: Mapping[str, NDArray[np.floating]], truths: Mapping[str, Truth], splits: Splits
) -> tuple[Probe, tuple[str, ...]]:
    """The probe with the best mean AUROC on the val split; of equals, the one with the strongest penalty."""
    fitting, choosing, _ = splits
    best, best_value = None, -np.inf
    for inverse_penalty in INVERSE_PENALTIES:
        probe = fit_probe(features[fitting], truths[fitting], inverse_penalty=inverse_penalty)
        truth = truths[choosing]
        value = macro_auroc(probe.predict(features[choosing]), truth.labels, truth.labelled)(
            np.ones((1, len(truth.studies)))
        )[0]
        if np.isfinite(value) and value > best_value:
            best, best_value = probe, value
    if best is not None:
        return best, ()
    note = f"Split {choosing} holds no finding with both classes, so the penalty was not chosen but set to C = 0.1."
    return fit_probe(features[fitting], truths[fitting], inverse_penalty=0.1), (note,)


def probe_result(
    ours: Mapping[str, StoreEmbeddings],
    scratch: Mapping[str, StoreEmbeddings] | None,
    *,
    splits: Splits = ("train", "val", "test"),
    pooling: Pooling = "mean_max",
    label_fraction: float = 1.0,
    draws: int = DRAWS,
    seed: int = 0,
) -> TaskResult:
    """Probe embeddings by split. With `scratch` (the same studies through random weights) the controls are scored too.

    The image-removed control sees which sequences were acquired, and nothing else.
    """
    arms = {"model": {split: pooled for split, pooled in _pooled(ours, splits, pooling).items()}}
    if scratch is not None:
        arms[SCRATCH] = _pooled(scratch, splits, pooling)
        arms[IMAGE_REMOVED] = {split: ours[split].acquired.astype(np.float64) for split in splits}
    truths = {split: truth_of(ours[split]) for split in splits}
    fitting, _, scored = splits
    keep = keep_subjects(truths[fitting].subjects, fraction=label_fraction, seed=seed)
    truths[fitting] = truths[fitting].rows(keep)
    predicted, notes = {}, list[str]()
    for name, features in arms.items():
        kept = {**features, fitting: features[fitting][keep]}
        probe, said = choose_probe(kept, truths, splits)
        predicted[name] = probe.predict(kept[scored])
        notes += [f"{name}: C = {probe.inverse_penalty:g} on {int(keep.sum())} labelled studies.", *said]
    result = result_of(predicted, truths[scored], task="abnormality-probe", draws=draws, seed=seed)
    return result.but(split=scored, notes=(*result.notes, *notes))


def result_of(
    predicted: Mapping[str, NDArray[np.floating]], truth: Truth, *, task: str, draws: int = DRAWS, seed: int = 0
) -> TaskResult:
    """Scores of each arm's probabilities and tests of the model (the arm `model`) against every other."""
    ours = predicted["model"]
    others = {name: given for name, given in predicted.items() if name != "model"}
    table = score_arm(ours, truth, metrics=METRICS, draws=draws, seed=seed)
    for name, given in others.items():
        table += score_arm(given, truth, arm=name, draws=draws, seed=seed)
    return TaskResult(
        task=task,
        split="",
        subjects=len(np.unique(truth.subjects)),
        studies=len(truth.studies),
        scores=tuple(table),
        comparisons=compare_with_controls(ours, others, truth, draws=draws, seed=seed),
        notes=unscored_note(truth),
        predictions=list_predictions(ours, truth),
    )


def score(
    model: Recipe | Loaded,
    store: StudySource,
    config: Config,
    *,
    out: Path | None = None,
    progress: Progress | None = None,
) -> TaskResult:
    """Train on the train split, choose on val (a probe), score on the settings' split, with controls.

    Nothing is written into `out`.

    Raises:
        ValueError: a split without studies, a split that is learned from, or a store without labels.
    """
    if config.split in ("train", "val", "all"):
        raise ValueError(f"split {config.split!r} is what the task learns from; score another, such as test")
    if not store.findings:
        raise ValueError("the store labels no finding; give label columns (label:<finding>) to ingest")
    recipe, settings = opened(model, store, config.loader)
    if config.mode == "probe":
        splits = ("train", "val", config.split)

        def embed(recipe: Recipe) -> dict[str, StoreEmbeddings]:
            return {
                side: embed_split(recipe, store, split=side, loader=settings, wanted="features", progress=progress)
                for side in splits
            }

        result = probe_result(
            embed(recipe),
            embed(from_scratch(recipe, seed=config.seed)) if config.controls else None,
            splits=splits,
            pooling=config.pooling,
            label_fraction=config.label_fraction,
            draws=config.draws,
            seed=config.seed,
        )
    else:
        result = _finetuned(recipe, store, config, settings)
    return result.under(config).but(
        split=config.split,
        model=type(recipe).__name__,
        simulated=is_simulated(store, config.split),
        notes=(*seen_note(model, store, config.split), *result.notes),
    )


class AbnormalityNet(nn.Module):
    """A recipe's encoder and a linear head on the mean and the maximum over acquired sequences. Keeps `Trainable`."""

    def __init__(self, recipe: Recipe, embedding: int, findings: tuple[str, ...]) -> None:
        super().__init__()
        self.recipe, self.findings = recipe, findings
        self.head = nn.Linear(2 * embedding, len(findings))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, batch: Batch) -> Float[Tensor, "b f"]:
        """Logits."""
        return self.head(pool_acquired(self.recipe.encode(batch), batch.acquired))

    def losses(self, batch: Batch, *, progress: float) -> dict[str, Float[Tensor, ""]]:
        """Binary cross-entropy over the known labels only."""
        logits = self(batch)
        terms = F.binary_cross_entropy_with_logits(logits, batch.labels, reduction="none")
        # A batch without any label gives a zero that still has a gradient.
        return {"bce": (terms * batch.labelled).sum() / batch.labelled.sum().clamp(min=1)}


def finetune(
    recipe: Recipe, store: StudySource, schedule: Schedule, *, loader: LoaderConfig, seed: int = 0
) -> AbnormalityNet:
    """Train a copy of the recipe's encoder and a new head on the train split; the recipe itself is left as it was."""
    settings = loader.but(sequences=recipe.sequences, seed=seed)
    fabric = schedule.fabric()
    fabric.launch()
    # Only the net's own draws (dropout, dropped sequences) come from the global generator, and it is put back.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probe_batch = next(iter(Loader(store, settings.but(batch_size=1), split="train", train=False)))
        with torch.no_grad():
            width = copy.deepcopy(recipe).cpu().eval().encode(probe_batch).shape[-1]
        net = AbnormalityNet(copy.deepcopy(recipe), width, tuple(store.findings)).to(fabric.device)
        module: Trainable = net
        assert module is net
        batches = Loader(store, settings, split="train", train=True)
        for _ in train(net, batches, schedule, fabric=fabric, state=TrainState.fresh(net, schedule)):
            pass
    return net.cpu().eval()


def predict_split(
    net: AbnormalityNet, store: StudySource, *, split: str | None, loader: LoaderConfig, remove_image: bool = False
) -> tuple[NDArray[np.float64], Truth]:
    """Probabilities (n, f) of a fine-tuned net, and what is known of the studies."""
    batches = Loader(store, loader.but(sequences=net.recipe.sequences), split=split, train=False)
    return read_studies(batches, lambda batch: net(batch).sigmoid(), findings=net.findings, blind=remove_image)


def _finetuned(recipe: Recipe, store: StudySource, config: Config, loader: LoaderConfig) -> TaskResult:
    seed, split = config.seed, config.split
    labelled = fewer_labels(store, fraction=config.label_fraction, seed=seed)
    net = finetune(recipe, labelled, config.schedule, loader=loader, seed=seed)
    ours, truth = predict_split(net, store, split=split, loader=loader)
    predicted = {"model": ours}
    if config.controls:
        fresh = finetune(from_scratch(recipe, seed=seed), labelled, config.schedule, loader=loader, seed=seed)
        predicted[SCRATCH] = predict_split(fresh, store, split=split, loader=loader)[0]
        predicted[IMAGE_REMOVED] = predict_split(net, store, split=split, loader=loader, remove_image=True)[0]
    result = result_of(predicted, truth, task="abnormality-finetune", draws=config.draws, seed=seed)
    studies = sum(row.split == "train" for row in labelled.rows)
    note = f"{config.schedule.steps} steps on {studies} labelled studies, both arms alike."
    return result.but(notes=(*result.notes, note))


def _pooled(sides: Mapping[str, StoreEmbeddings], splits: Splits, pooling: Pooling) -> dict[str, NDArray[np.float64]]:
    fill = sequence_means(sides[splits[0]]) if pooling == "concat" else None
    return {split: pool_sequences(sides[split], pooling=pooling, fill=fill) for split in splits}
