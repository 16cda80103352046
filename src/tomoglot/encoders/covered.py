"""Adam for parameters of which a step touches a box: only the box is read, gets a gradient and moves.

The rule: each value has an Adam of its own (Kingma 2015, algorithm 1, no weight decay), whose clock, `seen`, ticks in
the steps that have a window over the value. Where every step covers everything this is AdamW without decay, to the bit
of rounding. Differs from AdamW on the whole parameter:

- what no window covers stays where it is, moments and clock too; AdamW would move it on by its momentum, and let the
  momentum fade;
- the bias correction counts how often a value was covered, not how many steps there were: a value that is first
  covered late starts as one that is covered first;
- the gradient is not clipped and not part of the norm that clips the rest: Adam's step does not depend on its scale;
- such parameters have `requires_grad` off, so a moving average of the weights (`ema_decay`) leaves them as they are.

Moments and clock (10 bytes a value, for the parameters touched so far) lie in the optimiser's state beside all others:
they are saved and resumed with it. On several devices DDP does not know these parameters; `step` gathers the windows of
all ranks and takes the mean over ranks, as DDP does, so what is sent are crops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn

Box = tuple[tuple[int, int], ...]
MOST_SEEN = 32_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A box (first, end per axis) of a parameter seen as a volume of `shape`, and a copy of its values to learn."""

    parameter: nn.Parameter
    shape: tuple[int, int, int]
    box: Box
    values: Tensor


class Covered(nn.Module):
    """A module with parameters that are read through windows.

    Attributes:
        windows: what was read since the last update; None while no optimiser updates this module.
    """

    windows: list[Window] | None = None

    def covered_parameters(self) -> list[nn.Parameter]:
        """The parameters that windows are of."""
        return []


class CoveredAdamW(torch.optim.AdamW):
    """AdamW for all parameters that have a gradient, and the rule above for the `Covered` modules of `module`."""

    def __init__(self, groups: Sequence[dict[str, Any]], module: nn.Module, **options: Any) -> None:
        parts = [part for part in module.modules() if isinstance(part, Covered) and part.covered_parameters()]
        covered = [parameter for part in parts for parameter in part.covered_parameters()]
        extra = [{"params": covered, "weight_decay": 0.0}] if covered else []
        super().__init__([*groups, *extra], **options)
        self._parts, self._covered = parts, covered
        for part in parts:
            part.windows = []

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Update the windows read since the last step, then everything else.

        Raises:
            FloatingPointError: the gradient of a window is not finite; nothing was updated.
        """
        if self._covered:
            self._update(self._gather())
        return super().step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget gradients, and windows with theirs."""
        for part in self._parts if hasattr(self, "_parts") else ():
            part.windows = []
        super().zero_grad(set_to_none)

    def _gather(self) -> list[Window]:
        """Windows with their gradients as values, of all ranks, each divided by the number of ranks."""
        windows = [window for part in self._parts for window in part.windows or ()]
        mine = [
            Window(parameter=one.parameter, shape=one.shape, box=one.box, values=one.values.grad)
            for one in windows
            if one.values.grad is not None
        ]
        if not distributed.is_initialized() or distributed.get_world_size() == 1:
            return mine
        number = {id(parameter): at for at, parameter in enumerate(self._covered)}
        told: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(told, [(number[id(one.parameter)], one.shape, one.box) for one in mine])
        found = []
        for rank, theirs in enumerate(told):
            for at, (which, shape, box) in enumerate(theirs):
                parameter = self._covered[which]
                own = rank == distributed.get_rank()
                gradient = mine[at].values if own else parameter.new_empty([end - first for first, end in box])
                distributed.broadcast(gradient, src=rank)
                found.append(Window(parameter=parameter, shape=shape, box=box, values=gradient / len(told)))
        return found

    def _update(self, windows: Sequence[Window]) -> None:
        # A sum says it too, in a quarter of the time.
        if not all(bool(one.values.sum().isfinite()) for one in windows):
            raise FloatingPointError("the gradient of a template is not finite; nothing was updated")
        group = self.param_groups[-1]
        for parameter in {id(one.parameter): one.parameter for one in windows}.values():
            state = self.state[parameter]
            if not state:
                # `step` because torch's own AdamW looks for it when it loads a state.
                state["step"] = torch.zeros(())
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
                state["seen"] = torch.zeros_like(parameter, dtype=torch.int16)
            # Loading makes every state of a float parameter a float; the counts are exact in it.
            state["seen"] = state["seen"].to(torch.int16)
            state["step"] += 1
            for box, gradient, mask in merged([one for one in windows if one.parameter is parameter]):
                shape = next(one.shape for one in windows if one.parameter is parameter)
                whole = [parameter, state["exp_avg"], state["exp_avg_sq"], state["seen"]]
                views = [one.view(shape)[slices(box)] for one in whole]
                if mask is None:
                    # Slabs that fit a processor's cache were tried and were no faster.
                    _adam(*views, gradient=gradient, group=group)
                    continue
                parts = [view[mask] for view in views]
                _adam(*parts, gradient=gradient[mask], group=group)
                for view, part in zip(views, parts, strict=True):
                    view[mask] = part


def slices(box: Box) -> tuple[slice, ...]:
    """The box as an index."""
    return tuple(slice(first, end) for first, end in box)


def merged(windows: Sequence[Window]) -> Iterable[tuple[Box, Tensor, Tensor | None]]:
    """Disjoint boxes with summed gradients: windows that overlap become their common box and a mask of what they cover.

    A window of its own has no mask. Their number is that of a batch, so all pairs are tried.
    """
    clusters: list[tuple[Box, list[Window]]] = []
    for window in windows:
        box, members, grown = window.box, [window], True
        while grown:
            grown = False
            for other in list(clusters):
                if all(a < d and c < b for (a, b), (c, d) in zip(box, other[0], strict=True)):
                    clusters.remove(other)
                    box = tuple((min(a, c), max(b, d)) for (a, b), (c, d) in zip(box, other[0], strict=True))
                    members, grown = [*members, *other[1]], True
        clusters.append((box, members))
    for box, members in clusters:
        if all(member.box == box for member in members):
            yield box, sum((member.values for member in members[1:]), start=members[0].values), None
            continue
        total = members[0].values.new_zeros([end - first for first, end in box])
        mask = torch.zeros_like(total, dtype=torch.bool)
        for member in members:
            within = tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(member.box, box, strict=True))
            total[within] += member.values
            mask[within] = True
        yield box, total, mask


def _adam(
    value: Tensor, mean: Tensor, square: Tensor, seen: Tensor, *, gradient: Tensor, group: dict[str, Any]
) -> None:
    """One step of Adam in place, each value with the bias correction of its own clock."""
    (first, second), rate = group["betas"], group["lr"]
    seen.add_(1)
    mean.lerp_(gradient, 1 - first)
    square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
    low, high = (int(one) for one in seen.aminmax())
    if high > MOST_SEEN:
        # Far past where a correction is 1; the next number is not far past what 16 bits hold.
        seen.clamp_(max=MOST_SEEN)
        low, high = min(low, MOST_SEEN), MOST_SEEN
    clock = torch.arange(low, high + 1, dtype=torch.float64, device=seen.device)
    size, root = (rate / (1 - first**clock)).to(value.dtype), (1 - second**clock).sqrt().to(value.dtype)
    # A table of what each clock gives: powers of a whole box take longer than all the rest.
    at: Tensor | int = (seen - low).int() if low < high else 0
    size, root = size[at], root[at]
    value.addcdiv_(mean * size, square.sqrt().div_(root).add_(group["eps"]), value=-1)
