"""The network that writes a report: a small decoder that attends to cells of an encoder's maps, sequence by sequence.

What it sees of a study, for each acquired sequence: the pooled vector, the coarsest map and finer ones, cut into at
most so many cells an edge (mean and maximum of each), each cell with its place in the crop. What it says are pieces of
the training reports, as the packaged sentence encoder's WordPiece tokenizer cuts them. All sizes are ours [I].
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

from tomoglot.batches.batch import Batch
from tomoglot.config import Settings
from tomoglot.studies.report import read_report
from tomoglot.tasks.heads.report_sight import CellReader, Shapes, Shelf, Sight
from tomoglot.types import Scalar

PAD, BEGIN, END, UNKNOWN, BREAK = range(5)
IGNORED = -100
# Studies that are written for at once.
AT_ONCE = 64


class WriterConfig(Settings):
    """Sizes of the decoder and of what it sees.

    Attributes:
        width: of the decoder.
        layers: each with self-attention and attention to the cells.
        heads: of attention.
        dropout: while training.
        maps: how many maps of the pyramid are seen, from the coarsest.
        cells: at most so many cells an edge of each map.
        aligned: also see what the recipe says of the whole volume in the space shared with text, where it has one [I].
            What it is worth was not measured, so it is off.
        max_tokens: a report is cut there, and ends there at the latest.
        label_smoothing: share of the target that all pieces have alike.
    """

    width: int = Field(192, ge=8)
    layers: int = Field(2, ge=1)
    heads: int = Field(4, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    maps: int = Field(2, ge=1)
    cells: int = Field(4, ge=1)
    aligned: bool = False
    max_tokens: int = Field(200, ge=4)
    label_smoothing: float = Field(0.1, ge=0, lt=1)


class Pieces:
    """Words of the training reports, in pieces; a report that is made of them is read back as it was.

    A piece keeps its letters as they stand, and whether it touches the piece before it. White space becomes one space.
    """

    def __init__(self, reports: Iterable[str], tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._know(sorted({piece for report in reports for part in _sections(report) for piece in self._cut(part)}))

    @classmethod
    def kept(cls, known: Sequence[tuple[bool, str]], tokenizer: Any) -> Pieces:
        """Those that another had, in its order."""
        found = cls((), tokenizer)
        found._know(known)
        return found

    def _know(self, pieces: Sequence[tuple[bool, str]]) -> None:
        self.known = tuple(pieces)
        self._number = {piece: BREAK + 1 + at for at, piece in enumerate(pieces)}

    def __len__(self) -> int:
        return BREAK + 1 + len(self.known)

    def encode(self, report: str, *, max_tokens: int) -> list[int]:
        """Numbers of the pieces, between a begin and an end, with a break before the impression; cut at the limit."""
        numbers = [BEGIN]
        for at, part in enumerate(_sections(report)):
            numbers += [BREAK] * (at > 0) + [self._number.get(piece, UNKNOWN) for piece in self._cut(part)]
        return [*numbers, END][:max_tokens]

    def decode(self, numbers: Iterable[int]) -> str:
        """The report of these pieces, with headings where there was a break."""
        parts = [""]
        for number in numbers:
            if number == END:
                break
            if number == BREAK:
                parts.append("")
            elif number > BREAK:
                glued, surface = self.known[number - BREAK - 1]
                parts[-1] += surface if glued or not parts[-1] else f" {surface}"
        if len(parts) == 1:
            return parts[0]
        return f"FINDINGS: {parts[0]}\n\nIMPRESSION: {' '.join(filter(None, parts[1:]))}"

    def _cut(self, text: str) -> list[tuple[bool, str]]:
        spans = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)[
            "offset_mapping"
        ]
        return [(begin > 0 and text[begin - 1] != " ", text[begin:end]) for begin, end in spans]


class ReportWriter(CellReader):
    """A decoder over what a `Sight` shows; keeps `Trainable`."""

    def __init__(
        self,
        sight: Sight,
        pieces: Pieces,
        config: WriterConfig,
        *,
        shelf: Shelf | Shapes,
        frozen: bool = True,
    ) -> None:
        super().__init__(sight, width=config.width, shelf=shelf, frozen=frozen)
        self.config, self.pieces = config, pieces
        width = config.width
        self.decoder = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=len(pieces),
                n_positions=config.max_tokens,
                n_embd=width,
                n_layer=config.layers,
                n_head=config.heads,
                resid_pdrop=config.dropout,
                embd_pdrop=config.dropout,
                attn_pdrop=config.dropout,
                add_cross_attention=True,
                bos_token_id=BEGIN,
                eos_token_id=END,
                pad_token_id=PAD,
            )
        )
        self._encoded: dict[str, list[int]] = {}

    def losses(self, batch: Batch, *, progress: float) -> dict[str, Scalar]:
        """Cross-entropy of each piece after the true ones before it (teacher forcing), a piece at a time."""
        return {"words": self._cross_entropy(batch, smoothing=self.config.label_smoothing)}

    @torch.no_grad()
    def write(self, batch: Batch, *, beams: int = 1) -> list[str]:
        """A report for each study: the likeliest pieces one by one, or the best of several beams."""
        return self.write_from(*self.memory(batch), beams=beams)

    @torch.no_grad()
    def write_from(self, memory: Float[Tensor, "b m w"], acquired: Bool[Tensor, "b m"], *, beams: int = 1) -> list[str]:
        """The same from what was seen already (`memory`)."""
        begin = torch.full((len(memory), 1), BEGIN, device=memory.device)
        written = self.decoder.generate(
            begin,
            attention_mask=torch.ones_like(begin),
            encoder_hidden_states=memory,
            encoder_attention_mask=acquired.long(),
            generation_config=GenerationConfig(
                max_length=self.config.max_tokens,
                num_beams=beams,
                do_sample=False,
                early_stopping=beams > 1,
                suppress_tokens=[PAD, UNKNOWN, BEGIN],
                bos_token_id=BEGIN,
                eos_token_id=END,
                # What follows an end is not read.
                pad_token_id=END,
            ),
        )
        return [self.pieces.decode(row) for row in written[:, 1:].tolist()]

    def _cross_entropy(self, batch: Batch, *, smoothing: float) -> Scalar:
        memory, acquired = self.memory(batch)
        given = self._targets(batch.reports).to(memory.device)
        logits = self.decoder(
            given[:, :-1],
            attention_mask=(given[:, :-1] != PAD).long(),
            encoder_hidden_states=memory,
            encoder_attention_mask=acquired.long(),
            use_cache=False,
        ).logits
        wanted = given[:, 1:].masked_fill(given[:, 1:] == PAD, IGNORED)
        return F.cross_entropy(
            logits.flatten(0, 1).float(), wanted.flatten(), ignore_index=IGNORED, label_smoothing=smoothing
        )

    def _targets(self, reports: Sequence[str | None]) -> Int[Tensor, "b t"]:
        rows = []
        for report in reports:
            assert report, "a study without a report cannot teach"
            if report not in self._encoded:
                self._encoded[report] = self.pieces.encode(report, max_tokens=self.config.max_tokens)
            rows.append(torch.tensor(self._encoded[report]))
        return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)


def write_split(writer: ReportWriter, batches: Iterable[Batch], *, beams: int, blind: bool = False) -> list[str]:
    """A report for every study, in order. `blind` removes the image: volumes are zeros, what was acquired is known.

    Studies are seen a batch at a time and written for many at a time: a piece costs much the same for 16 rows and 64.
    """
    device = next(writer.parameters()).device
    found: list[str] = []
    rows: list[tuple[Tensor, Tensor]] = []
    for batch in batches:
        shown = replace(batch, volumes=torch.zeros_like(batch.volumes)) if blind else batch
        with torch.no_grad():
            rows += zip(*writer.memory(shown.to(device)), strict=True)
        while len(rows) >= AT_ONCE:
            found += writer.write_from(*_stacked(rows[:AT_ONCE]), beams=beams)
            rows = rows[AT_ONCE:]
    return found + (writer.write_from(*_stacked(rows), beams=beams) if rows else [])


def _stacked(rows: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """What was seen of several studies; of one with fewer sequences the rest was not acquired."""
    memory, acquired = (nn.utils.rnn.pad_sequence(list(its), batch_first=True) for its in zip(*rows, strict=True))
    return memory, acquired


def _sections(report: str) -> list[str]:
    """Findings and impression, or the whole text as one; white space is one space."""
    parts = read_report(report)
    told = [part for part in (parts.findings, parts.impression) if part] or [parts.text]
    return [" ".join(part.split()) for part in told]
