"""The network that classification trains: a pre-trained encoder, one vector a study, and a linear layer.

Two ways to one vector. `channels`: all sequences are channels of one encoder, as BrainMVP's own classification had it
(code, Fine_tune/classification: mean of the coarsest map, one linear layer). `pooled`: each sequence by itself through
the encoder, then the mean and the maximum over those that were acquired.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional as F

from tomoglot.batches.batch import Batch
from tomoglot.batches.loader import Loader, LoaderConfig, StudySource
from tomoglot.encoders.vision import VisionEncoder
from tomoglot.encoders.weights import Adaptation, Coverage
from tomoglot.recipes.recipe import Recipe
from tomoglot.schedule import Schedule
from tomoglot.tasks.embeddings import Progress, pool_acquired
from tomoglot.tasks.heads.channels import channel_settings, load_channels
from tomoglot.tasks.heads.segmenter import StandIn, zeros
from tomoglot.tasks.scores.scoring import Truth, read_studies
from tomoglot.training import TrainState, train
from tomoglot.types import Scalar


class PooledBody(nn.Module):
    """Each sequence through a copy of the recipe's encoder; mean and maximum over the acquired ones."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = copy.deepcopy(recipe)

    def forward(self, batch: Batch) -> Float[Tensor, "b _e"]:
        """One vector a study."""
        return pool_acquired(self.recipe.encode(batch), batch.acquired)


class ChannelBody(nn.Module):
    """All sequences as channels of one encoder; the stand-in fills those that are absent, and is not trained."""

    def __init__(self, encoder: VisionEncoder, stand_in: StandIn = zeros) -> None:
        super().__init__()
        self.encoder, self.stand_in = encoder, stand_in

    def forward(self, batch: Batch) -> Float[Tensor, "b _e"]:
        """One vector a study."""
        there = batch.acquired[:, :, None, None, None]
        pooled: Tensor = self.encoder(torch.where(there, batch.volumes, self.stand_in(batch))).pooled
        return pooled


class Classifier(nn.Module):
    """A body and a linear layer that starts at zero; keeps `Trainable`.

    With one column of labels it says the probability of the finding, with more it says which class it is.
    """

    def __init__(self, body: nn.Module, *, width: int, columns: int) -> None:
        super().__init__()
        self.body, self.columns = body, columns
        self.head = nn.Linear(width, columns)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, batch: Batch) -> Float[Tensor, "b k"]:
        """Logits."""
        logits: Tensor = self.head(self.body(batch))
        return logits

    def probabilities(self, batch: Batch) -> Float[Tensor, "b k"]:
        """Of the finding, or of each class."""
        logits = self(batch).float()
        return logits.sigmoid() if self.columns == 1 else logits.softmax(dim=1)

    def losses(self, batch: Batch, *, progress: float) -> dict[str, Scalar]:
        """Cross-entropy; every study of the batch must be known."""
        logits = self(batch)
        if self.columns == 1:
            return {"cross_entropy": F.binary_cross_entropy_with_logits(logits, batch.labels)}
        return {"cross_entropy": F.cross_entropy(logits, batch.labels.argmax(dim=1))}


def channel_encoder(
    recipe: Recipe,
    sequences: tuple[str, ...],
    *,
    pretrained: bool,
    how: Adaptation = "mean",
    from_sequence: str | None = None,
    seed: int = 0,
) -> tuple[VisionEncoder, Coverage | None]:
    """The recipe's encoder with these sequences as channels, and what of its weights was loaded (None: not asked to).

    Raises:
        ValueError: the encoder does not fit, cannot be built anew, or there is one a sequence and none was chosen.
    """
    source, settings = channel_settings(recipe, sequences, how=how, from_sequence=from_sequence)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = settings.build()
    return encoder, load_channels(encoder, source, recipe, sequences, how=how) if pretrained else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassProbe:
    """A fitted linear probe: a scaler and a classifier of the classes 0, 1, ... in order."""

    scaler: StandardScaler
    classifier: LogisticRegression

    def predict(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """Probabilities: of the finding (n, 1), or of each class (n, k)."""
        given = self.classifier.predict_proba(self.scaler.transform(features))
        return np.asarray(given[:, 1:] if given.shape[1] == 2 else given, dtype=np.float64)


def fit_class_probe(
    features: NDArray[np.floating], classes: NDArray[np.integer], *, inverse_penalty: float, balanced: bool
) -> ClassProbe:
    """Logistic regression on standardised features; `balanced` weighs every class alike, however rare."""
    scaler = StandardScaler().fit(features)
    # Features outnumber studies: the penalty decides, and a loose tolerance costs nothing.
    classifier = LogisticRegression(
        C=inverse_penalty, class_weight="balanced" if balanced else None, max_iter=5000, tol=1e-3
    )
    return ClassProbe(scaler=scaler, classifier=classifier.fit(scaler.transform(features), classes))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reading:
    """How studies are read: from what store, with which channels and labels."""

    store: StudySource
    loader: LoaderConfig
    findings: tuple[str, ...]

    def batches(self, *, split: str, train: bool = False) -> Loader:
        """Batches of a split."""
        return Loader(self.store, self.loader, split=split, train=train, findings=self.findings)


def build_classifier(body: nn.Module, reading: Reading, *, seed: int, device: torch.device | str = "cpu") -> Classifier:
    """A body that is on `device`, with a new linear layer over what it says of a study."""
    one = replace(reading, loader=reading.loader.but(batch_size=1, workers=0))
    batch = next(iter(one.batches(split="train")))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        width = body.eval()(batch.to(device)).shape[1]
        return Classifier(body, width=width, columns=len(reading.findings)).to(device)


def fit_classifier(net: Classifier, reading: Reading, schedule: Schedule, *, progress: Progress | None = None) -> float:
    """Train on the train split; returns the seconds that the steps took. The net ends in eval mode, on its device."""
    fabric = schedule.fabric()
    fabric.launch()
    net.to(fabric.device)
    seconds = 0.0
    # Only the net's own draws (dropout) come from the global generator, and it is put back.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(reading.loader.seed)
        batches = reading.batches(split="train", train=True)
        for step in train(net, batches, schedule, fabric=fabric, state=TrainState.fresh(net, schedule)):
            seconds += step.seconds
            if progress is not None:
                progress(step.number, schedule.steps)
    net.eval()
    return seconds


def read_split(
    what: Callable[[Batch], Tensor],
    reading: Reading,
    *,
    split: str,
    device: torch.device | str = "cpu",
    blind: bool = False,
) -> tuple[NDArray[np.float64], Truth]:
    """What a network says of every study of a split, in order (n, e), and what is known of them.

    `blind` removes the image: volumes are zeros and what was acquired stays known.
    """
    return read_studies(
        reading.batches(split=split),
        lambda batch: what(batch.to(device)),
        findings=reading.findings,
        blind=blind,
    )
