"""Which parameters are trained, and how fast each of them is in comparison with the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class PartsAtOwnRates(Protocol):
    """What a module may offer: parts of it that are to learn faster or slower than the rest."""

    def rate_factors(self) -> Mapping[str, float]:
        """By the beginning of a parameter's name: its learning rate over the schedule's. All others have 1."""
        ...


def parameter_groups(module: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """Groups for an optimiser, none of them empty, each with its `rate_factor`.

    One-dimensional parameters (biases, norms) and scalars (learnable temperatures) get no weight decay.

    Raises:
        ValueError: nothing can be trained, or a rate is asked for parameters that there are not.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not trained:
        raise ValueError(f"{type(module).__name__} has no trainable parameter")
    factor_of: dict[nn.Parameter, float] = {}
    for begin, factor in (module.rate_factors() if isinstance(module, PartsAtOwnRates) else {}).items():
        named = [parameter for name, parameter in module.named_parameters() if name.startswith(begin)]
        if not named:
            raise ValueError(f"{type(module).__name__} has no parameter {begin}*, for which a learning rate is given")
        factor_of |= dict.fromkeys(named, factor)
    groups = [
        {
            "params": [p for p in trained if (p.ndim > 1) == matrices and factor_of.get(p, 1.0) == factor],
            "weight_decay": weight_decay if matrices else 0.0,
            "rate_factor": factor,
        }
        for factor in dict.fromkeys((1.0, *factor_of.values()))
        for matrices in (True, False)
    ]
    return [group for group in groups if group["params"]]
