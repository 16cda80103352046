"""A trained segmentation network as a folder: `weights.safetensors` and `network.json`, which says what it reads.

`transfer segmentation --out DIR` writes it, `--set network=DIR` goes on from it: to adapt it to other studies, or with
`steps=0` only to predict. It applies to studies prepared by the same plan, with the same channels and regions.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Literal

import torch
from pydantic import SerializeAsAny
from safetensors import SafetensorError
from safetensors.torch import load, save

from tomoglot.checkpoint import RESEARCH_USE, subject_digests
from tomoglot.config import Settings
from tomoglot.encoders.vision import VisionEncoder
from tomoglot.store.plan import Plan
from tomoglot.studies.atomic import write_bytes
from tomoglot.tasks.segmenter import Segmenter

CARD, WEIGHTS = "network.json", "weights.safetensors"


class NetworkCard(Settings):
    """What a trained segmentation network reads and gives, and which subjects its masks came from.

    `thresholds` are those of the regions, in order. `subjects` are salted digests, as on a checkpoint's card.
    """

    format: Literal[1] = 1
    encoder: SerializeAsAny[VisionEncoder.Config]
    sequences: tuple[str, ...]
    regions: dict[str, tuple[int, ...]]
    deep_supervision: int
    absent: str
    thresholds: tuple[float, ...]
    plan: Plan
    simulated: bool
    salt: str
    subjects: tuple[str, ...]
    use: str = RESEARCH_USE

    def count_seen(self, subjects: set[str]) -> int:
        """How many of these subjects (pseudonyms) had masks that the network, or one it goes on from, learned from."""
        return len(set(subject_digests(subjects, self.salt)) & set(self.subjects))


def save_network(
    folder: Path,
    net: Segmenter,
    *,
    sequences: tuple[str, ...],
    absent: str,
    thresholds: tuple[float, ...],
    plan: Plan,
    simulated: bool,
    learned_from: set[str],
    before: NetworkCard | None,
) -> Path:
    """Write weights and card, each whole or not at all; the subjects of the network `before` stay on the card."""
    encoder = getattr(net.encoder, "config", None)
    assert isinstance(encoder, VisionEncoder.Config), "the encoder was built from its settings"
    salt = before.salt if before is not None else secrets.token_hex(8)
    earlier = set() if before is None else set(before.subjects)
    card = NetworkCard(
        encoder=encoder,
        sequences=sequences,
        regions=net.regions,
        deep_supervision=net.decoder.deep_supervision,
        absent=absent,
        thresholds=thresholds,
        plan=plan,
        simulated=simulated and (before is None or before.simulated),
        salt=salt,
        subjects=tuple(sorted(earlier | set(subject_digests(learned_from, salt)))),
    )
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in net.state_dict().items()}
    write_bytes(folder / WEIGHTS, save(state))
    write_bytes(folder / CARD, card.to_json().encode())
    return folder


def read_card(folder: Path) -> NetworkCard:
    """What the network in this folder is.

    Raises:
        ValueError: there is none.
    """
    if not (folder / CARD).is_file():
        raise ValueError(f"{folder.name}: no {CARD} here; give the folder `network` that transfer --out wrote")
    return NetworkCard.load(folder / CARD)


def load_network(folder: Path, net: Segmenter, *, sequences: tuple[str, ...], plan: Plan) -> NetworkCard:
    """Load the network's weights into one of the same make, and return its card.

    Raises:
        ValueError: there is no network, or it reads other sequences, gives other regions, was trained on studies
            prepared in another way, or does not fit.
    """
    card = read_card(folder)
    for what, theirs, ours in (
        ("sequences", card.sequences, sequences),
        ("regions", card.regions, net.regions),
        ("deep_supervision", card.deep_supervision, net.decoder.deep_supervision),
        ("plan", card.plan, plan),
    ):
        if theirs != ours:
            raise ValueError(f"network {folder.name}: its {what} are {theirs}, here they are {ours}; they must agree")
    try:
        state = load((folder / WEIGHTS).read_bytes())
        net.load_state_dict(state, strict=True)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"network {folder.name}: its weights do not fit this encoder ({type(error).__name__})"
        ) from error
    if not all(bool(torch.isfinite(tensor).all()) for tensor in state.values()):
        raise ValueError(f"network {folder.name}: its weights hold values that are not finite")
    return card
