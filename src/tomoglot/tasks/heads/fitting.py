"""Training of what reads cells, a report writer or an answerer: checked on held-out studies, the best weights kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from tomoglot.batches.batch import Batch
from tomoglot.schedule import Schedule
from tomoglot.tasks.heads.report_sight import HeldOut
from tomoglot.training import TrainState, train

# Of studies from which the levels of an encoder that is trained as well are standardised.
CALIBRATED = 64


class Chosen(NamedTuple):
    """Which weights a training kept: those of a step, and their loss on what was held out, if anything was."""

    step: int
    loss: float | None

    def said(self, steps: int, unit: str) -> str:
        """In words, for a note beside the scores."""
        why = (
            "not chosen, since there is no val split"
            if self.loss is None
            else f"chosen on val ({self.loss:.3f} {unit})"
        )
        return f"step {self.step} of {steps} {why}."


def fit_reader(
    reader: HeldOut,
    batches: Iterable[Batch],
    schedule: Schedule,
    *,
    held_out: Callable[[], Iterable[Batch]] | None = None,
    checks: int = 10,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Chosen:
    """Train, and keep the weights with the least loss on what is held out; returns their step and that loss.

    Without anything held out the last weights stay, and there is no loss. The reader ends in evaluation mode.
    """
    fabric = schedule.fabric()
    fabric.launch()
    reader.to(fabric.device)
    every = max(1, schedule.steps // checks)
    best: tuple[float, int, dict[str, Tensor]] | None = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for step in train(reader, batches, schedule, fabric=fabric, state=TrainState.fresh(reader, schedule)):
            if progress is not None:
                progress(step.number)
            if held_out is None or (step.number % every and step.number < schedule.steps):
                continue
            loss = reader.held_out_loss(held_out(), fabric.device)
            if best is None or loss < best[0]:
                best = loss, step.number, {name: value.detach().clone() for name, value in _trained(reader)}
    reader.eval()
    if best is None:
        return Chosen(schedule.steps, None)
    with torch.no_grad():
        for name, value in _trained(reader):
            value.copy_(best[2][name])
    return Chosen(best[1], best[0])


def _trained(reader: HeldOut) -> list[tuple[str, Tensor]]:
    return [(name, value) for name, value in reader.named_parameters() if value.requires_grad]
