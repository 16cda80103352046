"""The networks that answer a question about a study, by choosing one of the usual answers (a closed set).

The words of the question, from a frozen text encoder, ask the cells of the study's maps (`report_sight`), sequence by
sequence and place by place, then one another; their mean chooses. Or, where a recipe has a fusion of its own, one layer
chooses from what it makes of study and question (`reader="fused"`). All sizes are ours [I].
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from tomoglot.batches.batch import Batch
from tomoglot.config import Settings
from tomoglot.encoders.fusion import Block
from tomoglot.encoders.text import FrozenTextEncoder
from tomoglot.recipes.recipe import Recipe
from tomoglot.studies.questions import Question
from tomoglot.tasks.heads.report_sight import CellReader, HeldOut, Shelf, Sight, take_rows
from tomoglot.types import Scalar

# Rows of a recipe's own fusion in one pass: each is all the volumes of a study.
FUSED_ROWS = 16
# What tells the questions about one study apart: its words, and the sequence that alone is shown.
Asked = tuple[str, str | None]
Said = dict[tuple[str, Asked], Float[Tensor, " a"]]


class AnswererConfig(Settings):
    """Sizes of the network and of what it sees.

    Attributes:
        reader: `cells` asks the cells of the maps, `fused` the recipe's own fusion (`Recipe.fuse`).
        width: of words and cells.
        layers: in each, words ask the cells, then one another.
        heads: of attention.
        dropout: while training.
        maps: how many maps of the pyramid are seen, from the coarsest.
        cells: at most so many cells an edge of each map.
        label_smoothing: share of the target that all answers have alike.
    """

    reader: Literal["cells", "fused"] = "cells"
    width: int = Field(128, ge=8)
    layers: int = Field(2, ge=1)
    heads: int = Field(4, ge=1)
    dropout: float = Field(0.2, ge=0, lt=1)
    maps: int = Field(2, ge=1)
    cells: int = Field(4, ge=1)
    label_smoothing: float = Field(0.0, ge=0, lt=1)


@dataclass(frozen=True, slots=True)
class Unit:
    """Questions that are asked while the same is shown: of one study, or of one of its sequences."""

    row: int
    sequence: str | None
    questions: tuple[Question, ...]


class Answerer(HeldOut):
    """What all of them share: questions by study (the catalogue's keys), and the answers there are.

    `per_study` questions of a study are drawn each time in training; asked in evaluation, all are.
    """

    config: AnswererConfig
    head: nn.Module

    def know(
        self,
        questions: Mapping[str, Sequence[Question]],
        answers: Sequence[str],
        text: FrozenTextEncoder,
        per_study: int,
    ) -> None:
        """Take the questions of every study that will be shown."""
        self._questions, self.answers, self.per_study = questions, tuple(answers), per_study
        self._number = {answer: at for at, answer in enumerate(self.answers)}
        self.text = text

    def losses(self, batch: Batch, *, progress: float) -> dict[str, Scalar]:
        """Cross-entropy of the answers that are among those there are; a study that has none such says nothing."""
        return {"answers": self._cross_entropy(batch, smoothing=self.config.label_smoothing)}

    @torch.no_grad()
    def answer(self, batches: Iterable[Batch]) -> Said:
        """Probability of each answer to every question, by study and what was asked; in evaluation mode."""
        device = next(self.parameters()).device
        found: Said = {}
        for batch in batches:
            units = self._units(batch)
            if not units:
                continue
            shares = self.logits(batch.to(device), units).float().softmax(dim=1).cpu()
            keys = [(batch.studies[unit.row], asked_of(one)) for unit in units for one in unit.questions]
            found |= dict(zip(keys, shares, strict=True))
        return found

    def logits(self, batch: Batch, units: Sequence[Unit]) -> Float[Tensor, "n a"]:
        """One row a question, in the order of the units."""
        raise NotImplementedError

    def _units(self, batch: Batch, *, known: bool = False, limit: int | None = None) -> list[Unit]:
        units = []
        for row, study in enumerate(batch.studies):
            asked = [one for one in self._questions.get(study, ()) if not known or one.answer in self._number]
            if limit is not None and len(asked) > limit:
                asked = [asked[at] for at in torch.randperm(len(asked))[:limit].tolist()]
            for sequence in dict.fromkeys(one.sequence for one in asked):
                its = tuple(one for one in asked if one.sequence == sequence)
                units.append(Unit(row, sequence, its))
        return units

    def _cross_entropy(self, batch: Batch, *, smoothing: float) -> Scalar:
        units = self._units(batch, known=True, limit=self.per_study if self.training else None)
        if not units:
            return sum((value.sum() * 0.0 for value in self.parameters()), torch.zeros(()))
        given = self.logits(batch, units).float()
        true = [self._number[one.answer] for unit in units for one in unit.questions]
        return F.cross_entropy(given, torch.tensor(true, device=given.device), label_smoothing=smoothing)


class CellAnswerer(Answerer, CellReader):
    """Words ask cells. `blank` never sees a study: the words ask two learned vectors in the place of all cells."""

    def __init__(
        self,
        sight: Sight,
        config: AnswererConfig,
        *,
        num_answers: int,
        text_width: int,
        shelf: Shelf,
        frozen: bool = True,
        blank: bool = False,
    ) -> None:
        super().__init__(sight, width=config.width, shelf=shelf, frozen=frozen)
        self.config, width = config, config.width
        self.words = nn.Linear(text_width, width)

        def blocks() -> nn.ModuleList:
            made = (Block(width, heads=config.heads, dropout=config.dropout) for _ in range(config.layers))
            return nn.ModuleList(made)

        self.asks, self.thinks = blocks(), blocks()
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Dropout(config.dropout), nn.Linear(width, num_answers))
        self.nothing = nn.Parameter(torch.zeros(2, width)) if blank else None

    def logits(self, batch: Batch, units: Sequence[Unit]) -> Float[Tensor, "n a"]:
        """Words of all questions of a unit ask its cells side by side; each question thinks by itself."""
        seen, there = self._shown(batch, units)
        tokens = self.text.tokenise([one.question for unit in units for one in unit.questions]).to(seen.device)
        attended = tokens.attended
        words = self.words(self.text.states(tokens).to(seen.device))
        most = max(len(unit.questions) for unit in units)
        places = [(at, slot) for at, unit in enumerate(units) for slot in range(len(unit.questions))]
        unit_of, slot_of = torch.tensor(places, device=seen.device).T
        for ask, think in zip(self.asks, self.thinks, strict=True):
            padded = words.new_zeros(len(units), most, *words.shape[1:]).index_put((unit_of, slot_of), words)
            told = ask(padded.flatten(1, 2), seen, there).view_as(padded)
            words = think(told[unit_of, slot_of], None, attended)
        return self.head(_mean(words, attended))

    def _shown(self, batch: Batch, units: Sequence[Unit]) -> tuple[Float[Tensor, "u m e"], Bool[Tensor, "u m"]]:
        if self.nothing is None:
            return self.memory(show(batch, units))
        seen = self.nothing.expand(len(units), -1, -1)
        return seen, torch.ones_like(seen[..., 0], dtype=torch.bool)


class FusedAnswerer(Answerer):
    """One hidden layer over what the recipe's fusion made of study and question; `fused` has it for all of them."""

    mean: Tensor
    spread: Tensor

    def __init__(self, config: AnswererConfig, fused: Said, *, num_answers: int) -> None:
        super().__init__()
        self.config, self._fused = config, dict(fused)
        table = torch.stack(list(fused.values())).float()
        self.register_buffer("mean", table.mean(dim=0))
        self.register_buffer("spread", table.std(dim=0) + 1e-4)
        self.head = nn.Sequential(
            nn.Linear(table.shape[1], config.width), nn.GELU(), nn.Dropout(config.dropout),
            nn.Linear(config.width, num_answers),
        )  # fmt: skip

    def remember(self, fused: Said) -> None:
        """Take these as well, in the place of what was known of the same study and question."""
        self._fused |= fused

    def logits(self, batch: Batch, units: Sequence[Unit]) -> Float[Tensor, "n a"]:
        """From the vectors that are remembered; the batch only tells the studies."""
        keys = [(batch.studies[unit.row], asked_of(one)) for unit in units for one in unit.questions]
        vectors = torch.stack([self._fused[key] for key in keys]).float().to(self.mean.device)
        return self.head((vectors - self.mean) / self.spread)


@torch.no_grad()
def fuse_questions(recipe: Recipe, batches: Iterable[Batch], questions: Mapping[str, Sequence[Question]]) -> Said:
    """What a frozen recipe's fusion makes of every study and question, in half precision.

    Raises:
        ValueError: the recipe has no fusion.
    """
    device, was_training = next(recipe.parameters()).device, recipe.training
    found: Said = {}
    recipe.eval()
    try:
        for batch in batches:
            asked: dict[Unit, list[Question]] = {}
            for row, study in enumerate(batch.studies):
                for one in questions.get(study, ()):
                    asked.setdefault(Unit(row, one.sequence, ()), []).append(one)
            units = list(asked)
            for at in range(0, len(units), FUSED_ROWS):
                part = units[at : at + FUSED_ROWS]
                texts = [[one.question for one in asked[unit]] for unit in part]
                with torch.random.fork_rng(devices=[]):
                    vectors = recipe.fuse(show(batch, part).to(device), texts).half().cpu()
                keys = [(batch.studies[unit.row], asked_of(one)) for unit in part for one in asked[unit]]
                found |= dict(zip(keys, vectors, strict=True))
    except NotImplementedError as error:
        raise ValueError(f"{error}; answer with answerer.reader=cells") from error
    finally:
        recipe.train(was_training)
    return found


def show(batch: Batch, units: Sequence[Unit]) -> Batch:
    """The studies of the units, of which only the sequence that is asked about counts as acquired, where one is."""
    shown = take_rows(batch, [unit.row for unit in units])
    names = [batch.sequences if unit.sequence is None else (unit.sequence,) for unit in units]
    only = torch.tensor([[name in its for name in batch.sequences] for its in names], device=batch.acquired.device)
    return replace(shown, acquired=shown.acquired & only)


def asked_of(question: Question) -> Asked:
    """What tells the questions about one study apart."""
    return question.question, question.sequence


def _mean(words: Float[Tensor, "n t e"], attended: Bool[Tensor, "n t"]) -> Float[Tensor, "n e"]:
    used = attended[..., None].to(words.dtype)
    return (words * used).sum(dim=1) / used.sum(dim=1).clamp(min=1)
