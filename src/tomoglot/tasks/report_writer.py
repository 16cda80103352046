"""The network that writes a report: a small decoder that attends to cells of an encoder's maps, sequence by sequence.

What it sees of a study, for each acquired sequence: the pooled vector, the coarsest map and finer ones, cut into at
most so many cells an edge (mean and maximum of each), each cell with its place in the crop. What it says are pieces of
the training reports, as the packaged sentence encoder's WordPiece tokenizer cuts them. All sizes are ours [I].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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
from tomoglot.schedule import Schedule
from tomoglot.studies.report import read_report
from tomoglot.tasks.report_sight import Cells, Levels, Shelf, Sight
from tomoglot.training import TrainState, train
from tomoglot.types import Acquired, Scalar

PAD, BEGIN, END, UNKNOWN, BREAK = range(5)
IGNORED = -100
# Sines and cosines of a cell's place along each axis, at these many half turns over the crop, and the place itself.
TURNS = (1, 2, 4, 8)


class WriterConfig(Settings):
    """Sizes of the decoder and of what it sees.

    Attributes:
        width: of the decoder.
        layers: each with self-attention and attention to the cells.
        heads: of attention.
        dropout: while training.
        maps: how many maps of the pyramid are seen, from the coarsest.
        cells: at most so many cells an edge of each map.
        max_tokens: a report is cut there, and ends there at the latest.
        label_smoothing: share of the target that all pieces have alike.
    """

    width: int = Field(192, ge=8)
    layers: int = Field(2, ge=1)
    heads: int = Field(4, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    maps: int = Field(2, ge=1)
    cells: int = Field(4, ge=1)
    max_tokens: int = Field(200, ge=4)
    label_smoothing: float = Field(0.1, ge=0, lt=1)


class Pieces:
    """Words of the training reports, in pieces; a report that is made of them is read back as it was.

    A piece keeps its letters as they stand, and whether it touches the piece before it. White space becomes one space.
    """

    def __init__(self, reports: Iterable[str], tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        seen = sorted({piece for report in reports for part in _sections(report) for piece in self._cut(part)})
        self.known = tuple(seen)
        self._number = {piece: BREAK + 1 + at for at, piece in enumerate(seen)}

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


class ReportWriter(nn.Module):
    """A decoder over what a `Sight` shows; keeps `Trainable`. `frozen` leaves the encoder as it is.

    Levels are standardised, a sequence at a time, by those of the studies on `shelf`.
    """

    def __init__(
        self,
        sight: Sight,
        pieces: Pieces,
        config: WriterConfig,
        *,
        shelf: Shelf,
        frozen: bool = True,
    ) -> None:
        super().__init__()
        self.config, self.pieces, self.frozen = config, pieces, frozen
        self.sight = sight.requires_grad_(not frozen)
        width = config.width
        self.project = nn.ModuleList(nn.Linear(level.shape[-1], width) for level in shelf.levels)
        self.place = nn.Linear(3 * (1 + 2 * len(TURNS)), width)
        self.sequence = nn.Embedding(len(sight.sequences), width)
        self.level = nn.Embedding(len(shelf.levels), width)
        self.norm = nn.LayerNorm(width)
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
        self._levels = len(shelf.levels)
        for at, level in enumerate(shelf.levels):
            mean, spread = _moments(level.float(), shelf.studies.acquired)
            self.register_buffer(f"mean_{at}", mean)
            self.register_buffer(f"spread_{at}", spread)
            # The pooled vector has no place.
            grid = (1, 1, 1) if at == 0 else shelf.grids[at - 1]
            self.register_buffer(f"places_{at}", _places(grid) * (at > 0))
        self._shelved: dict[str, tuple[Shelf, int]] = {}
        self._encoded: dict[str, list[int]] = {}

    def remember(self, shelf: Shelf) -> None:
        """Take these studies from the shelf when their volumes are not given."""
        self._shelved |= {study: (shelf, row) for row, study in enumerate(shelf.studies.studies)}

    def train(self, mode: bool = True) -> ReportWriter:
        """Frozen means in evaluation mode as well."""
        super().train(mode)
        if self.frozen:
            self.sight.eval()
        return self

    def memory(self, batch: Batch) -> tuple[Float[Tensor, "b m e"], Bool[Tensor, "b m"]]:
        """What the decoder attends to, and which of it was acquired.

        Absent sequences are left out as far as all studies of the batch allow: most of the cost lies in the cells.
        """
        order = batch.acquired.int().argsort(dim=1, descending=True, stable=True)
        order = order[:, : int(batch.acquired.sum(dim=1).max())]
        acquired = batch.acquired.gather(1, order)
        studies = torch.arange(len(batch), device=order.device)[:, None]
        names = torch.tensor([self.sight.sequences.index(name) for name in batch.sequences], device=order.device)[order]
        seen = []
        for at, level in enumerate(self._look(batch)):
            scaled = (level[studies, order] - getattr(self, f"mean_{at}")[names]) / getattr(self, f"spread_{at}")[names]
            where = self.place(getattr(self, f"places_{at}"))
            seen.append(self.project[at](scaled) + where + self.sequence(names)[:, :, None] + self.level.weight[at])
        cells = torch.cat(seen, dim=2)
        known = acquired[:, :, None].expand(-1, -1, cells.shape[2])
        return self.norm(cells).flatten(1, 2), known.flatten(1)

    def losses(self, batch: Batch, *, progress: float) -> dict[str, Scalar]:
        """Cross-entropy of each piece after the true ones before it (teacher forcing), a piece at a time."""
        return {"words": self._cross_entropy(batch, smoothing=self.config.label_smoothing)}

    @torch.no_grad()
    def held_out_loss(self, batches: Iterable[Batch], device: torch.device | str = "cpu") -> float:
        """Mean cross-entropy a piece, weighed by batch, without smoothing and dropout."""
        was_training = self.training
        self.eval()
        found = [(len(batch), self._cross_entropy(batch.to(device), smoothing=0.0).item()) for batch in batches]
        self.train(was_training)
        return sum(size * loss for size, loss in found) / sum(size for size, _ in found)

    @torch.no_grad()
    def write(self, batch: Batch, *, beams: int = 1) -> list[str]:
        """A report for each study: the likeliest pieces one by one, or the best of several beams."""
        memory, acquired = self.memory(batch)
        begin = torch.full((len(batch), 1), BEGIN, device=memory.device)
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

    def _look(self, batch: Batch) -> Levels:
        if batch.volumes.numel():
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
                return tuple(self.sight(batch))
        kept = [self._shelved[study] for study in batch.studies]
        device = batch.acquired.device
        return tuple(
            torch.stack([shelf.levels[at][row] for shelf, row in kept]).float().to(device) for at in range(self._levels)
        )

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


def fit_writer(
    writer: ReportWriter,
    batches: Iterable[Batch],
    schedule: Schedule,
    *,
    held_out: Callable[[], Iterable[Batch]] | None = None,
    checks: int = 10,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> tuple[int, float | None]:
    """Train, and keep the weights with the least loss on what is held out; returns their step and that loss.

    Without anything held out the last weights stay, and there is no loss. The writer ends in evaluation mode.
    """
    fabric = schedule.fabric()
    fabric.launch()
    writer.to(fabric.device)
    every = max(1, schedule.steps // checks)
    best: tuple[float, int, dict[str, Tensor]] | None = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for step in train(writer, batches, schedule, fabric=fabric, state=TrainState.fresh(writer, schedule)):
            if progress is not None:
                progress(step.number)
            if held_out is None or (step.number % every and step.number < schedule.steps):
                continue
            loss = writer.held_out_loss(held_out(), fabric.device)
            if best is None or loss < best[0]:
                best = loss, step.number, {name: value.detach().clone() for name, value in _trained(writer)}
    writer.eval()
    if best is None:
        return schedule.steps, None
    with torch.no_grad():
        for name, value in _trained(writer):
            value.copy_(best[2][name])
    return best[1], best[0]


def write_split(writer: ReportWriter, batches: Iterable[Batch], *, beams: int, blind: bool = False) -> list[str]:
    """A report for every study, in order. `blind` removes the image: volumes are zeros, what was acquired is known."""
    device = next(writer.parameters()).device
    found: list[str] = []
    for batch in batches:
        shown = replace(batch, volumes=torch.zeros_like(batch.volumes)) if blind else batch
        found += writer.write(shown.to(device), beams=beams)
    return found


def _sections(report: str) -> list[str]:
    """Findings and impression, or the whole text as one; white space is one space."""
    parts = read_report(report)
    told = [part for part in (parts.findings, parts.impression) if part] or [parts.text]
    return [" ".join(part.split()) for part in told]


def _places(grid: Cells) -> Float[Tensor, "p _d"]:
    """Where the middle of each cell lies, from -1 to 1 along each axis, with sines and cosines."""
    axes = [(2 * torch.arange(size) + 1) / size - 1 for size in grid]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)
    turned = [wave(torch.pi * turns * places) for turns in TURNS for wave in (torch.sin, torch.cos)]
    return torch.cat([places, *turned], dim=1)


def _moments(level: Float[Tensor, "n c p w"], acquired: Acquired) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each feature over studies and cells, a sequence at a time: (c, 1, w) each."""
    used = acquired[:, :, None, None].to(level.dtype)
    count = (used.sum(dim=0, keepdim=True) * level.shape[2]).clamp(min=1)
    mean = (level * used).sum(dim=(0, 2), keepdim=True) / count
    variance = ((level - mean).square() * used).sum(dim=(0, 2), keepdim=True) / count
    # A feature that is everywhere the same tells nothing, and must not be blown up.
    return mean[0], (variance + 1e-4 * mean.square() + 1e-8).sqrt()[0]


def _trained(writer: ReportWriter) -> list[tuple[str, Tensor]]:
    return [(name, value) for name, value in writer.named_parameters() if value.requires_grad]
