"""The training loop: one for every recipe and task, short enough to read, and it yields after each update.

A step is one update of the optimiser. It may read several batches (`batches_per_step`), whose gradients and logged
terms are averaged. The learning rate is a function of the step alone, so there is no scheduler to save.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from tomoglot.batches.batch import Batch
from tomoglot.encoders.covered import CoveredAdamW
from tomoglot.rates import parameter_groups
from tomoglot.schedule import Schedule
from tomoglot.types import Scalar

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Trainable(Protocol):
    """What the loop asks of a module (an `nn.Module`): recipes and tasks both keep it."""

    def losses(self, batch: Batch, *, progress: float) -> dict[str, Scalar]:
        """Weighted terms by name; their sum is minimised. A term that is switched off is left out."""
        ...


@dataclass(slots=True)
class TrainState:
    """All that changes from step to step, besides the module and the loader."""

    optimiser: torch.optim.Optimizer
    average: dict[str, Tensor] | None = None
    step: int = 0

    @classmethod
    def fresh(cls, module: nn.Module, schedule: Schedule) -> TrainState:
        """State before the first step; the module must be on its device already.

        Raises:
            ValueError: as of `rates.parameter_groups`.
        """
        groups = parameter_groups(module, weight_decay=schedule.weight_decay)
        optimiser = CoveredAdamW(
            groups,
            module,
            lr=schedule.rate(0),
            betas=schedule.betas,
            # One pass over memory, not many: an update takes a seventh on a CPU too (results/optimiser_step.md).
            fused=True,
        )
        averaged = _trained(module) if schedule.ema_decay is not None else ()
        average = {name: value.detach().clone() for name, value in averaged} or None
        return cls(optimiser=optimiser, average=average)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One update. `stream` is a digest of which crops were read; `terms` are means over the step's batches."""

    number: int
    terms: Mapping[str, float]
    learning_rate: float
    grad_norm: float
    seconds: float
    samples: int
    stream: str
    batch: Batch = field(repr=False)

    @property
    def loss(self) -> float:
        """Sum of the terms."""
        return math.fsum(self.terms.values())


def train(
    module: nn.Module, loader: Iterable[Batch], schedule: Schedule, *, fabric: Fabric, state: TrainState
) -> Generator[Step, None, None]:
    """Update `module` until `state.step` reaches the schedule's end, yielding after each update.

    Raises:
        FloatingPointError: a loss or a gradient that is not finite, on any device, before the update.
        ValueError: the loader ended early.
    """
    wrapped, optimiser = fabric.setup(_Losses(module), state.optimiser)
    wrapped.train()
    batches = iter(loader)
    while state.step < schedule.steps:
        started = time.perf_counter()
        rate = schedule.rate(state.step)
        for group in state.optimiser.param_groups:
            # Not in a checkpoint of before there were factors, nor in the group of what is read through windows.
            group["lr"] = rate * group.get("rate_factor", 1.0)
        parts = list(islice(batches, schedule.batches_per_step))
        if not parts:
            raise ValueError(f"the loader ended after {state.step} of {schedule.steps} steps")
        terms: dict[str, Tensor] = {}
        for part, batch in enumerate(parts):
            on_device = batch.to(fabric.device)
            with fabric.no_backward_sync(wrapped, enabled=part + 1 < len(parts)):
                found = wrapped(_Sealed(on_device), state.step / schedule.steps)
                total = torch.stack([term.float() for term in found.values()]).sum()
                _refuse_non_finite(fabric, total, found, step=state.step, batches=[batch])
                fabric.backward(total / len(parts))
            for name, term in found.items():
                terms[name] = terms.get(name, 0) + term.detach().float() / len(parts)
        norm = nn.utils.clip_grad_norm_(module.parameters(), schedule.clip_norm or math.inf)
        _refuse_non_finite(fabric, norm, {"gradient norm": norm}, step=state.step, batches=parts)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if state.average is not None:
            assert schedule.ema_decay is not None
            _follow(state.average, module, min(schedule.ema_decay, (1 + state.step) / (10 + state.step)))
        state.step += 1
        yield Step(
            number=state.step,
            terms=_mean_over_ranks(fabric, terms),
            learning_rate=rate,
            grad_norm=norm.item(),
            seconds=time.perf_counter() - started,
            samples=sum(map(len, parts)) * fabric.world_size,
            stream=stream_digest(parts),
            batch=on_device,
        )


def stream_digest(batches: Iterable[Batch]) -> str:
    """Digest of the studies and the places of their crops, in order: equal digests mean an equal sample stream."""
    digest = hashlib.sha256()
    for batch in batches:
        digest.update("\n".join(batch.studies).encode())
        digest.update(batch.affine.double().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


class _Losses(nn.Module):
    """Makes `losses` the forward pass, which is the only call that DDP and autocast see."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, sealed: _Sealed, progress: float) -> dict[str, Scalar]:
        return self.module.losses(sealed.batch, progress=progress)  # type: ignore[operator]


class _Sealed:
    """Carries a batch past Fabric, which refuses frozen dataclasses and would cast affines to half precision."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch


def _refuse_non_finite(
    fabric: Fabric, value: Tensor, terms: Mapping[str, Tensor], *, step: int, batches: list[Batch]
) -> None:
    bad = (~value.isfinite()).float()
    if fabric.world_size > 1:
        bad = fabric.all_reduce(bad, reduce_op="max")
    if bad.item():
        values = ", ".join(f"{name}={term.item():.4g}" for name, term in terms.items())
        studies = ", ".join(key for batch in batches for key in batch.studies)
        raise FloatingPointError(
            f"step {step + 1} is not finite: {values}; studies {studies}. The weights were not updated: look at "
            "these studies, or lower schedule.learning_rate, and resume from the last checkpoint"
        )


def _trained(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    # Tied parameters appear under each of their names, as they do in the state dict.
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            yield name, parameter


@torch.no_grad()
def _follow(average: dict[str, Tensor], module: nn.Module, decay: float) -> None:
    for name, parameter in _trained(module):
        average[name].lerp_(parameter, 1 - decay)


def _mean_over_ranks(fabric: Fabric, terms: Mapping[str, Tensor]) -> dict[str, float]:
    values = dict(zip(terms, torch.stack(list(terms.values())).tolist(), strict=True))
    if fabric.world_size == 1:
        return values
    everywhere: list[dict[str, float]] = [{} for _ in range(fabric.world_size)]
    torch.distributed.all_gather_object(everywhere, values)
    return {name: sum(one.get(name, 0.0) for one in everywhere) / len(everywhere) for name in values}
