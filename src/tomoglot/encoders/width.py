"""A backbone made wider or narrower by its settings alone: which fields hold its channels, and what divides them."""

from __future__ import annotations

import math

from tomoglot.encoders.vision import VisionEncoder


def scale_width(vision: VisionEncoder.Config, multiplier: float) -> VisionEncoder.Config:
    """The same encoder with its channels multiplied, rounded to what its groups or heads divide.

    Raises:
        ValueError: it has no field of widths that is known here.
    """
    if multiplier == 1:
        return vision
    known = type(vision).model_fields

    def scaled(width: int, unit: int) -> int:
        return max(unit, unit * round(width * multiplier / unit))

    if "widths" in known:
        widths: tuple[int, ...] = vision.widths  # type: ignore[attr-defined]
        unit = getattr(vision, "groups", None) or getattr(vision, "norm_groups", None) or 1
        # UniFormer's heads are in its third and fourth stage; the first two are convolutions.
        head = getattr(vision, "head_width", unit)
        units = [head if stage >= 2 else unit for stage in range(len(widths))]
        return vision.but(widths=tuple(scaled(width, its) for width, its in zip(widths, units, strict=True)))
    if "width" in known and "heads" in known:
        heads = vision.heads  # type: ignore[attr-defined]
        # A tuple is one number a stage, each stage twice as wide as the one before.
        stages = enumerate(heads) if isinstance(heads, tuple) else [(0, heads)]
        unit = math.lcm(*(its // math.gcd(its, 2**stage) for stage, its in stages))
        return vision.but(width=scaled(vision.width, unit))  # type: ignore[attr-defined]
    name = type(vision).__module__.rpartition(".")[2]
    raise ValueError(
        f"the width of encoder {name} cannot be multiplied: it has neither `widths` nor `width` and `heads`; "
        "give --widths 1"
    )
