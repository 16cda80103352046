"""A linear probe on frozen features: one vector a study, one penalised logistic regression a finding.

The penalty is chosen on the val split. Beside it stand the same probe on the encoder from scratch, and one that sees
which sequences were acquired and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from tomoglot.tasks.embeddings import StoreEmbeddings
from tomoglot.tasks.labels import keep_subjects
from tomoglot.tasks.scores.detection_scores import result_of
from tomoglot.tasks.scores.intervals import DRAWS, macro_auroc
from tomoglot.tasks.scores.scoring import Truth, truth_of
from tomoglot.tasks.task import IMAGE_REMOVED, MODEL, SCRATCH, TaskResult

Pooling = Literal["mean_max", "concat"]
Splits = tuple[str, str, str]
INVERSE_PENALTIES = (0.001, 0.01, 0.1, 1.0)


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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fitted:
    """The model's probe, what it learned from, and the training means that `concat` fills in."""

    probe: Probe
    pooling: Pooling
    fill: NDArray[np.floating] | None
    taught: Truth
    embeddings: StoreEmbeddings


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
    findings: tuple[str, ...] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    keep: Callable[[Fitted], None] = lambda fitted: None,
) -> TaskResult:
    """Probe embeddings by split. With `scratch` (the same studies through random weights) the controls are scored too.

    `findings` are those that are asked; None asks all. `keep` is given the model's probe.

    The image-removed control sees which sequences were acquired, and nothing else.
    """
    arms = {MODEL: {split: pooled for split, pooled in _pooled(ours, splits, pooling).items()}}
    if scratch is not None:
        arms[SCRATCH] = _pooled(scratch, splits, pooling)
        arms[IMAGE_REMOVED] = {split: ours[split].acquired.astype(np.float64) for split in splits}
    truths = {split: truth_of(ours[split]).columns(findings or ours[split].findings) for split in splits}
    fitting, _, scored = splits
    labelled = keep_subjects(truths[fitting].subjects, fraction=label_fraction, seed=seed)
    truths[fitting] = truths[fitting].rows(labelled)
    predicted, notes = {}, list[str]()
    for name, features in arms.items():
        kept = {**features, fitting: features[fitting][labelled]}
        probe, said = choose_probe(kept, truths, splits)
        predicted[name] = probe.predict(kept[scored])
        notes += [f"{name}: C = {probe.inverse_penalty:g} on {int(labelled.sum())} labelled studies.", *said]
        if name == MODEL:
            fill = sequence_means(ours[fitting]) if pooling == "concat" else None
            keep(Fitted(probe=probe, pooling=pooling, fill=fill, taught=truths[fitting], embeddings=ours[fitting]))
    result = result_of(predicted, truths[scored], task="abnormality-probe", draws=draws, seed=seed)
    return result.but(split=scored, notes=(*result.notes, *notes))


def _pooled(sides: Mapping[str, StoreEmbeddings], splits: Splits, pooling: Pooling) -> dict[str, NDArray[np.float64]]:
    fill = sequence_means(sides[splits[0]]) if pooling == "concat" else None
    return {split: pool_sequences(sides[split], pooling=pooling, fill=fill) for split in splits}
