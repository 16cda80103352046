"""Encoders from elsewhere: a released file, or another run, as the start of a run or as a run folder of its own.

The released BrainMVP file (Rui 2025; facts from shaohao011/BrainMVP at a466bb2, mark: code) is a torch file of a whole
training state with the weights under `state_dict`, saved from several devices or one:

| names                 | what                               | what becomes of it |
|---|---|---|
| `module.`             | prefix of a run on several devices | taken off |
| `encoder.uniformer.*` | UniFormer-S, 22,038,464 parameters | loaded; our modules carry the same names |
| `decoder.*`           | decoder of the pre-training        | left out: no task uses it |
| `rep_template`        | 8 templates of 240 x 240 x 155     | left out: nothing says where in the world they lie |

The templates come back from `read_encoder` by sequence, in the order of the shipped script (`--template_index flair t1
t1c t2 mra pd dwi adc`); a file with another number of them keeps them unnamed, since nothing in it names them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tomoglot
from tomoglot.checkpoint import Card, load_checkpoint, save_checkpoint
from tomoglot.encoders.vision import VisionEncoder
from tomoglot.encoders.weights import Coverage, load_weights, read_weights
from tomoglot.recipes.recipe import Recipe
from tomoglot.store.plan import Plan
from tomoglot.studies.atomic import write_bytes

DEVICES_PREFIX = "module."
ENCODER_PREFIX = "encoder.uniformer."
TEMPLATES = "rep_template"
LEFT_OUT = ("decoder.", TEMPLATES)
TEMPLATE_SEQUENCES = ("flair", "t1w", "t1c", "t2w", "mra", "pd", "dwi", "adc")
IMPORT_FILE = "import.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderWeights:
    """Weights of one encoder, or of one a sequence.

    Attributes:
        origin: the file's name and digest, or the run's checkpoint.
        shared: names and tensors of the encoder that reads every sequence; empty where there is one a sequence.
        by_sequence: the same by sequence, where a run has an encoder a sequence.
        strip: prefix of the encoder's names.
        templates: released templates by sequence, each (x, y, z) on the released grid; unscaled.
    """

    origin: str
    shared: Mapping[str, Tensor] = field(default_factory=dict)
    by_sequence: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    strip: str = ""
    templates: Mapping[str, Tensor] = field(default_factory=dict)

    def of(self, sequence: str) -> Mapping[str, Tensor]:
        """What an encoder of this sequence is to hold.

        Raises:
            ValueError: there is an encoder a sequence, and none of this one.
        """
        if self.by_sequence and sequence not in self.by_sequence:
            raise ValueError(f"{self.origin} has no encoder of {sequence}; it has {', '.join(self.by_sequence)}")
        return self.by_sequence.get(sequence, self.shared)


def read_encoder(path: Path) -> EncoderWeights:
    """Read the encoder of a run folder, of a released BrainMVP file, or of a file that holds a bare encoder's weights.

    Nothing in a file is ever executed.

    Raises:
        ValueError: what `load_checkpoint` and `read_weights` refuse.
    """
    if path.is_dir():
        return _of_run(path)
    tensors = {name.removeprefix(DEVICES_PREFIX): value for name, value in read_weights(path).items()}
    released = any(name.startswith(ENCODER_PREFIX) for name in tensors)
    bank = tensors.get(TEMPLATES)
    named = released and bank is not None and len(bank) == len(TEMPLATE_SEQUENCES)
    return EncoderWeights(
        origin=f"{path.name}, sha256 {_digest(path)}",
        shared=tensors,
        strip=ENCODER_PREFIX if released else "",
        templates=dict(zip(TEMPLATE_SEQUENCES, bank, strict=True)) if named and bank is not None else {},
    )


def start_from(recipe: Recipe, weights: EncoderWeights, *, min_share: float = 0.95) -> Coverage:
    """Copy weights into the encoder of a recipe, or into each of them; the account is that of the first.

    Raises:
        ValueError: too few tensors fit (see `load_weights`), or a sequence has no encoder to start from.
    """
    accounts: dict[int, Coverage] = {}
    for sequence in recipe.sequences:
        encoder = recipe.backbone(sequence)
        if id(encoder) not in accounts:
            found = load_weights(encoder, weights.of(sequence), strip=weights.strip, min_share=min_share)
            accounts[id(encoder)] = _sorted_out(found) if weights.strip == ENCODER_PREFIX else found
    return next(iter(accounts.values()))


def import_released(
    path: Path,
    out: Path,
    *,
    sequences: tuple[str, ...],
    plan: Plan,
    encoder: str | VisionEncoder.Config = "uniformer:small",
    recipe: str = "brainmvp:released",
    crop_voxels: tuple[int, int, int] | None = (96, 96, 96),
    min_share: float = 0.95,
) -> Coverage:
    """Make a run folder of released weights, which every task reads like a run of ours; returns what fitted.

    All but the encoder is as the recipe starts: what the decoder and the templates would say is untrained. The card
    says where the weights are from, and so does every score: which subjects they saw is not known.

    Args:
        path: what `read_encoder` reads.
        out: a new folder; `import.json` in it keeps the account.
        sequences: those of the stores to come.
        plan: the preprocessing of those stores. Released BrainMVP: 1 mm, percentiles 5 to 95 to 0..1, clipped.
        encoder: preset or settings of the file's encoder.
        recipe: preset whose encoder it becomes.
        crop_voxels: what the encoder was trained on; None reads whole fields.
        min_share: the least share of the encoder's tensors that the file must fill.

    Raises:
        ValueError: `out` is not empty, the file cannot be read, or it fits too little.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out.name} is not an empty folder; give a new one, so that no run is mixed with another")
    vision = VisionEncoder.Config.named(encoder) if isinstance(encoder, str) else encoder
    config = Recipe.Config.named(recipe).but(vision=vision)
    weights = read_encoder(path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = config.build(sequences)
    coverage = start_from(built, weights, min_share=min_share)
    card = Card(
        tomoglot=tomoglot.__version__,
        recipe=config,
        plan=plan,
        crop_voxels=crop_voxels,
        sequences=sequences,
        store_digest="",
        split_digest="",
        step=0,
        steps=0,
        simulated=False,
        salt="",
        subjects=(),
        origin=weights.origin,
    )
    save_checkpoint(out, built, card, resume=None)
    write_account(out / IMPORT_FILE, account_of(weights, coverage))
    return coverage


def account_of(weights: EncoderWeights, coverage: Coverage) -> dict[str, Any]:
    """Where an encoder came from and what fitted, ready for JSON."""
    return {"origin": weights.origin, "share": coverage.share, **asdict(coverage)}


def write_account(path: Path, account: Mapping[str, Any]) -> None:
    """Write what `account_of` gives, whole or not at all."""
    write_bytes(path, (json.dumps(account, indent=2, sort_keys=True) + "\n").encode())


def _of_run(path: Path) -> EncoderWeights:
    loaded = load_checkpoint(path)
    recipe = loaded.recipe
    origin = f"checkpoint {loaded.folder.name} of {path.name}, weights sha256 {loaded.card.weights_digest}"
    encoders = {sequence: recipe.backbone(sequence) for sequence in recipe.sequences}
    if len({id(encoder) for encoder in encoders.values()}) == 1:
        return EncoderWeights(origin=origin, shared=next(iter(encoders.values())).state_dict())
    return EncoderWeights(origin=origin, by_sequence={name: one.state_dict() for name, one in encoders.items()})


def _sorted_out(coverage: Coverage) -> Coverage:
    """Tell what of a released file is left out knowingly from what nobody expected."""
    known = tuple(name for name in coverage.unexpected if name.startswith(LEFT_OUT))
    return replace(
        coverage,
        unexpected=tuple(name for name in coverage.unexpected if name not in set(known)),
        left_out=known,
    )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
