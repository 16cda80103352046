"""How long, how fast and on what a module is trained: the settings of the loop in training.py."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from tomoglot.config import Settings

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Schedule(Settings):
    """How long and how fast. Everything is counted in steps: updates of the optimiser, not batches."""

    steps: int = Field(1000, ge=1)
    warmup_steps: int = Field(50, ge=0)
    learning_rate: float = Field(1e-4, gt=0)
    min_learning_rate: float = Field(0.0, ge=0)
    weight_decay: float = Field(0.05, ge=0)
    betas: tuple[float, float] = (0.9, 0.98)
    batches_per_step: int = Field(1, ge=1)
    clip_norm: float | None = Field(1.0, gt=0)
    ema_decay: float | None = Field(None, gt=0, lt=1)
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    accelerator: str = "auto"
    devices: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(f"min_learning_rate {self.min_learning_rate} is above learning_rate {self.learning_rate}")
        return self

    def rate(self, step: int) -> float:
        """Learning rate of an update: a line up to `learning_rate`, then half a cosine down to the minimum."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        share = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        fall = (1 + math.cos(math.pi * min(1.0, share))) / 2
        return self.min_learning_rate + (self.learning_rate - self.min_learning_rate) * fall

    def fabric(self) -> Fabric:
        """Lightning Fabric for the devices and the precision, not launched yet."""
        from lightning_fabric import Fabric
        from lightning_fabric.strategies import DDPStrategy

        # Which encoders get a gradient depends on the sequences in the batch, hence find_unused_parameters.
        strategy: Any = DDPStrategy(find_unused_parameters=True) if self.devices > 1 else "auto"
        return Fabric(accelerator=self.accelerator, devices=self.devices, precision=self.precision, strategy=strategy)
