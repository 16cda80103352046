"""A fitted linear probe as a folder: `probe.json` and `weights.safetensors`, which are numbers and no pickled objects.

`transfer abnormality --mode probe --out DIR` writes it, and `evaluate external` scores it on another store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor, nn

from tomoglot.store.plan import Plan
from tomoglot.tasks.embeddings import StoreEmbeddings
from tomoglot.tasks.heads.kept import KeptCard, account_of, load_weights_kept, read_kept, write_kept
from tomoglot.tasks.heads.probe import Fitted, Pooling, pool_sequences

CARD = "probe.json"
# Who reads a probe takes a detector as well, which has a card of its own.
HINT = "the folder `probe` or `detector` that transfer abnormality --out wrote"


class ProbeCard(KeptCard):
    """What a kept probe reads and asks, and whose labels it learned from (salted digests).

    Attributes:
        findings: a probability each, in this order.
        sequences: of the training, in the order in which `concat` puts them side by side.
        pooling: one vector a study from those of its sequences.
        features: of one sequence's pooled vector.
        encoder: digest of the weights whose features these are; "" where it is not known.
        inverse_penalty: of the regressions.
    """

    findings: tuple[str, ...]
    sequences: tuple[str, ...]
    pooling: Pooling
    features: int
    encoder: str
    inverse_penalty: float


class LinearProbe(nn.Module):
    """The numbers of a fitted `Probe`: a regression a finding, or its share where training held one class."""

    mean: Tensor
    spread: Tensor
    weights: Tensor
    bias: Tensor
    share: Tensor
    constant: Tensor
    fill: Tensor

    def __init__(self, card: ProbeCard) -> None:
        super().__init__()
        self.card = card
        names, asked = len(card.sequences), len(card.findings)
        width = names * (card.features + 1) if card.pooling == "concat" else 2 * card.features
        for name, size in {
            "mean": (width,),
            "spread": (width,),
            "weights": (asked, width),
            "bias": (asked,),
            "share": (asked,),
            "constant": (asked,),
            "fill": (names, card.features),
        }.items():
            self.register_buffer(name, torch.zeros(size, dtype=torch.float64))

    @classmethod
    def of(cls, fitted: Fitted, card: ProbeCard) -> Self:
        """Take the numbers of a fitted probe."""
        net, probe = cls(card), fitted.probe
        net.mean.copy_(torch.as_tensor(probe.scaler.mean_))
        net.spread.copy_(torch.as_tensor(probe.scaler.scale_))
        for at, kind in enumerate(probe.classifiers):
            if isinstance(kind, float):
                net.constant[at], net.share[at] = 1, kind
            else:
                net.weights[at], net.bias[at] = torch.as_tensor(kind.coef_[0]), float(kind.intercept_[0])
        if fitted.fill is not None:
            net.fill.copy_(torch.as_tensor(fitted.fill))
        return net

    def predict(self, embeddings: StoreEmbeddings) -> Float[NDArray[np.float64], "n f"]:
        """Probabilities of the findings. Sequences that the training did not hold are not read by `concat`.

        Raises:
            ValueError: vectors of another width than those it was fitted on.
        """
        if embeddings.features.shape[2] != self.card.features:
            raise ValueError(
                f"the probe was fitted on {self.card.features} features a sequence, the checkpoint gives "
                f"{embeddings.features.shape[2]}: give --from the run that it was fitted on"
            )
        if self.card.pooling == "concat":
            embeddings = _in_order(embeddings, self.card.sequences)
        pooled = pool_sequences(embeddings, pooling=self.card.pooling, fill=self.fill.numpy())
        logits = (pooled - self.mean.numpy()) / self.spread.numpy() @ self.weights.numpy().T + self.bias.numpy()
        return np.where(self.constant.numpy() > 0, self.share.numpy(), expit(logits))


def save_probe(
    folder: Path, fitted: Fitted, *, encoder: str, plan: Plan, simulated: bool, learned_from: set[str]
) -> Path:
    """Write weights and card, each whole or not at all; returns the folder."""
    card = ProbeCard(
        findings=fitted.taught.findings,
        sequences=fitted.embeddings.sequences,
        pooling=fitted.pooling,
        features=fitted.embeddings.features.shape[2],
        encoder=encoder,
        inverse_penalty=fitted.probe.inverse_penalty,
        plan=plan,
        simulated=simulated,
        **account_of(learned_from),
    )
    return write_kept(folder, CARD, card, LinearProbe.of(fitted, card))


def load_probe(folder: Path) -> LinearProbe:
    """A kept probe.

    Raises:
        ValueError: there is none, or its weights do not fit its card.
    """
    card = read_kept(folder, CARD, ProbeCard, hint=HINT)
    net = LinearProbe(card)
    load_weights_kept(folder, net, what="probe", fit="its card")
    return net


def _in_order(embeddings: StoreEmbeddings, sequences: Sequence[str]) -> StoreEmbeddings:
    """The same studies with these columns; what the store lacks was not acquired."""
    have = {name: at for at, name in enumerate(embeddings.sequences)}
    count, _, width = embeddings.features.shape
    features = np.zeros((count, len(sequences), width), dtype=embeddings.features.dtype)
    acquired = np.zeros((count, len(sequences)), dtype=bool)
    for column, name in enumerate(sequences):
        if name in have:
            features[:, column] = embeddings.features[:, have[name]]
            acquired[:, column] = embeddings.acquired[:, have[name]]
    return replace(embeddings, features=features, acquired=acquired, sequences=tuple(sequences), aligned=None)
