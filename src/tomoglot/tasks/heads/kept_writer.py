"""A trained report writer as a folder: `writer.json` and `weights.safetensors`, its encoder included.

`transfer report_generation --out DIR` writes it; `--set writer_from=DIR` writes reports with it, also for studies that
have none, and trains nothing. The card lists the pieces of words of the reports that were learned from: keep it as
you would keep a list of their words.
"""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import SerializeAsAny

from tomoglot.batches.loader import LoaderConfig
from tomoglot.encoders.text import TextEncoder
from tomoglot.recipes.recipe import Recipe
from tomoglot.store.plan import Plan
from tomoglot.tasks.heads.kept import KeptCard, account_of, load_weights_kept, read_kept, settings_of, write_kept
from tomoglot.tasks.heads.report_sight import Shapes, Sight
from tomoglot.tasks.heads.report_writer import Pieces, ReportWriter, WriterConfig

CARD = "writer.json"


class WriterCard(KeptCard):
    """What a kept writer sees and says, and whose reports it learned from (salted digests)."""

    recipe: SerializeAsAny[Recipe.Config]
    sequences: tuple[str, ...]
    writer: WriterConfig
    frozen: bool
    shapes: Shapes
    pieces: tuple[tuple[bool, str], ...]
    loader: LoaderConfig


def save_writer(
    folder: Path,
    writer: ReportWriter,
    recipe: Recipe,
    *,
    plan: Plan,
    loader: LoaderConfig,
    simulated: bool,
    learned_from: set[str],
) -> Path:
    """Write weights and card, each whole or not at all; returns the folder.

    Raises:
        ValueError: the recipe does not keep the settings that built it.
    """
    card = WriterCard(
        recipe=settings_of(recipe, "writer"),
        sequences=writer.sight.sequences,
        writer=writer.config,
        frozen=writer.frozen,
        shapes=writer.shapes,
        pieces=writer.pieces.known,
        plan=plan,
        loader=loader,
        simulated=simulated,
        **account_of(learned_from),
    )
    return write_kept(folder, CARD, card, writer)


def read_writer_card(folder: Path) -> WriterCard:
    """What the writer in this folder is.

    Raises:
        ValueError: there is none.
    """
    hint = "the folder `writer` that transfer report_generation --out wrote"
    return read_kept(folder, CARD, WriterCard, hint=hint)


def load_writer(folder: Path) -> ReportWriter:
    """A kept writer, ready to write: in evaluation mode, on the CPU.

    Raises:
        ValueError: there is none, or its weights do not fit its card.
    """
    card = read_writer_card(folder)
    its = card.writer
    sight = Sight(card.recipe.build(card.sequences), maps=its.maps, cells=its.cells, aligned=its.aligned)
    pieces = Pieces.kept(card.pieces, TextEncoder.Config().build().tokenizer)
    writer = ReportWriter(sight, pieces, its, shelf=card.shapes, frozen=card.frozen)
    load_weights_kept(folder, writer, what="writer", fit="its card")
    return writer.eval()


def refuse_other_encoder(writer: ReportWriter, recipe: Recipe) -> None:
    """Refuse a checkpoint that the writer was not trained on: whom its encoder has seen would be told wrongly.

    An encoder that was trained with the writer is no checkpoint's any more, and only its make is compared.

    Raises:
        ValueError: it is another encoder.
    """
    its = writer.config
    theirs = Sight(recipe, maps=its.maps, cells=its.cells, aligned=its.aligned).state_dict()
    ours = writer.sight.state_dict()
    alike = writer.sight.sequences == recipe.sequences and theirs.keys() == ours.keys()
    alike = alike and all(theirs[name].shape == value.shape for name, value in ours.items())
    if alike and writer.frozen:
        alike = all(torch.equal(theirs[name].cpu(), value.cpu()) for name, value in ours.items())
    if not alike:
        raise ValueError("the writer sees through the encoder of another checkpoint; give --from that one")
