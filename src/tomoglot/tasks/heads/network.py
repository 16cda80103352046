"""A trained segmentation network as a folder: `weights.safetensors` and `network.json`, which says what it reads.

`transfer segmentation --out DIR` writes it, `--set network=DIR` goes on from it: to adapt it to other studies, or with
`steps=0` only to predict. It applies to studies prepared by the same plan, with the same channels and regions.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import SerializeAsAny

from tomoglot.encoders.vision import VisionEncoder
from tomoglot.store.plan import Plan
from tomoglot.tasks.heads.kept import KeptCard, account_of, load_weights_kept, read_kept, write_kept
from tomoglot.tasks.heads.segmenter import Segmenter

CARD = "network.json"


class NetworkCard(KeptCard):
    """What a trained segmentation network reads and gives, and which subjects its masks came from.

    `thresholds` are those of the regions, in order.
    """

    encoder: SerializeAsAny[VisionEncoder.Config]
    sequences: tuple[str, ...]
    regions: dict[str, tuple[int, ...]]
    deep_supervision: int
    absent: str
    thresholds: tuple[float, ...]


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
    card = NetworkCard(
        encoder=encoder,
        sequences=sequences,
        regions=net.regions,
        deep_supervision=net.decoder.deep_supervision,
        absent=absent,
        thresholds=thresholds,
        plan=plan,
        simulated=simulated and (before is None or before.simulated),
        **account_of(learned_from, before),
    )
    return write_kept(folder, CARD, card, net)


def read_card(folder: Path) -> NetworkCard:
    """What the network in this folder is.

    Raises:
        ValueError: there is none.
    """
    return read_kept(folder, CARD, NetworkCard, hint="the folder `network` that transfer --out wrote")


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
    load_weights_kept(folder, net, what="network", fit="this encoder")
    return card
