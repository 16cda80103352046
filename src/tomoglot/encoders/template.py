"""The template bank: one learnable volume a sequence, fixed in world space (Rui 2025, modality template distillation).

A template fills the hidden blocks of a crop where BrainMVP's other view takes another sequence. It starts at zero and
is trained by back-propagation alone; it ends as what that sequence looks like on average at each place of the atlas.
So studies must be registered to one atlas, and a crop must know where it lies: templates are read by the world
position of each voxel, whatever the crop's orientation, spacing or flips. (The released code slices by array offset,
and needs every study on the template's own grid.)

Only what a batch names is touched: each sequence is a parameter of its own, so the gradient of the others is None and
the optimiser leaves them alone, momentum and all. With ``update="covered"`` a step also leaves alone what its crops do
not cover (covered.py): at 1 mm a template has 9 million voxels, and a crop of 96^3 covers a tenth of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Self

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from tomoglot.config import Settings
from tomoglot.encoders.covered import Box, Covered, Window, slices
from tomoglot.studies.study import Volume
from tomoglot.types import Affines

# Below this range a template counts as constant, and min-max scaling only subtracts: at the zero start the released
# division by 1e-9 makes gradients too large by that factor, which their Adam hides and our clipping would not.
CONSTANT = 1e-6


class TemplateBank(Covered):
    """Learnable volumes on one grid in world space, by sequence."""

    class Config(Settings):
        """The grid and how its values are used.

        Attributes:
            origin_mm: world position (RAS+) of voxel (0, 0, 0); axes run to the right, front and head.
            spacing_mm: voxel size.
            shape: voxels. The default box holds a head in MNI space with a margin.
            scaling: "minmax" scales the whole template to 0..1 at each use, with the gradient flowing through the
                scaling (code); it suits intensities in 0..1, as the plan's ``percentile`` gives. "none" suits all.
            gain: a template is `gain` times what the optimiser sees. Adam moves every value by about the learning rate
                a step, whatever its gradient, so this is the template's learning rate over the encoder's (ours; the
                released code's 235,000 steps do not need it, a run of a thousand does).
            update: "dense", the optimiser's own rule on whole templates; "covered", on the boxes of the step's crops.
        """

        origin_mm: tuple[float, float, float] = (-96.0, -132.0, -84.0)
        spacing_mm: tuple[float, float, float] = (4.0, 4.0, 4.0)
        shape: tuple[int, int, int] = (49, 57, 50)
        scaling: Literal["none", "minmax"] = "none"
        gain: float = Field(1.0, gt=0)
        update: Literal["dense", "covered"] = "dense"

        @model_validator(mode="after")
        def _check(self) -> Self:
            if min(self.spacing_mm) <= 0 or min(self.shape) < 2:
                raise ValueError(f"a template needs a positive spacing and 2 voxels an axis: {self.shape}")
            if self.update == "covered" and self.scaling != "none":
                raise ValueError("scaling by 'minmax' hangs on the whole template: set update to 'dense'")
            return self

    def __init__(self, config: Config, sequences: tuple[str, ...]) -> None:
        super().__init__()
        self.config = config
        # Kept flat: the optimiser's rule is no weight decay for parameters of one dimension (training.py), and decay
        # would pull towards zero what a crop happens not to cover.
        size = int(np.prod(config.shape))
        dense = config.update == "dense"
        self.values = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(size), requires_grad=dense) for name in sequences}
        )
        self._placed = False

    def covered_parameters(self) -> list[nn.Parameter]:
        """All templates, if they are read through windows."""
        return list(self.values.values()) if self.config.update == "covered" else []

    def whole(self, sequence: str) -> Float[Tensor, "x y z"]:
        """The template of a sequence as it is used, on its own grid.

        Raises:
            ValueError: there is no template of this sequence.
        """
        self._refuse_unknown(sequence)
        template = self.config.gain * self.values[sequence].float()
        if self.config.scaling == "minmax":
            low, high = template.amin(), template.amax()
            span = high - low
            template = (template - low) / torch.where(span > CONSTANT, span, torch.ones_like(span))
        return template.view(self.config.shape)

    def read(
        self, sequences: Sequence[str], affine: Affines, shape: tuple[int, int, int]
    ) -> Float[Tensor, "b 1 i j k"]:
        """Crops of the templates: for each row, its sequence's template at the world position of every voxel.

        Trilinear between template voxels, zero outside the grid. `affine` takes a voxel of the crop to world mm.

        Raises:
            ValueError: an unknown sequence, or (asked once) no voxel of any crop lies inside the grid.
        """
        with torch.autocast(affine.device.type, enabled=False):
            places = self._places(affine, shape)
            if not self._placed:
                self._refuse_elsewhere(places)
            if self.windows is not None and torch.is_grad_enabled():
                return self._read_windows(sequences, places)
            rows_of: dict[str, list[int]] = {}
            for row, name in enumerate(sequences):
                rows_of.setdefault(name, []).append(row)
            parts = []
            for name, rows in rows_of.items():
                # Rows are laid one behind the other along i: as a batch they would each need a copy of the template,
                # and each a gradient of the template's size.
                laid = places[rows].flatten(0, 1)[None]
                template = self.whole(name)[None, None]
                read = F.grid_sample(template, laid, mode="bilinear", padding_mode="zeros", align_corners=True)
                parts.append(read.view(len(rows), 1, *shape))
            order = [row for rows in rows_of.values() for row in rows]
            return torch.cat(parts)[torch.tensor(order, device=affine.device).argsort()]

    def _read_windows(self, sequences: Sequence[str], places: Tensor) -> Float[Tensor, "b 1 i j k"]:
        """`read` from copies of the boxes that the crops touch, kept for the optimiser."""
        assert self.windows is not None
        parts = []
        for name, laid, box in zip(sequences, places, self._boxes(places), strict=True):
            if any(end - first < 2 for first, end in box):
                parts.append(laid.new_zeros(1, 1, *laid.shape[:3]))
                continue
            self._refuse_unknown(name)
            values = self.values[name].detach().view(self.config.shape)[slices(box)].clone().requires_grad_()
            self.windows.append(Window(parameter=self.values[name], shape=self.config.shape, box=box, values=values))
            # From the units of the whole grid to those of the box; axes are in reverse order, as `grid_sample` has it.
            last = laid.new_tensor([size - 1 for size in reversed(self.config.shape)])
            first, span = (laid.new_tensor(one[::-1]) for one in zip(*((a, b - 1 - a) for a, b in box), strict=True))
            within = ((laid + 1) * (last / 2) - first) * (2 / span) - 1
            template = (self.config.gain * values)[None, None]
            read = F.grid_sample(template, within[None], mode="bilinear", padding_mode="zeros", align_corners=True)
            parts.append(read)
        return torch.cat(parts)

    def _boxes(self, places: Tensor) -> list[Box]:
        """For each crop the template voxels round it, one more on each side for rounding, cut at the grid's ends."""
        ends = places[:, [0, -1]][:, :, [0, -1]][:, :, :, [0, -1]].flatten(1, 3).flip(-1).double()
        last = torch.tensor([size - 1 for size in self.config.shape], dtype=torch.float64, device=places.device)
        low, high = ((ends.amin(1) + 1) / 2 * last).floor() - 1, ((ends.amax(1) + 1) / 2 * last).ceil() + 2
        found = torch.stack([low, high], dim=-1).long().tolist()
        return [
            tuple((max(0, a), min(size, b)) for (a, b), size in zip(row, self.config.shape, strict=True))
            for row in found
        ]

    def volumes(self) -> Mapping[str, Volume]:
        """Every template as it is used, with the affine of the grid."""
        affine = np.diag([*self.config.spacing_mm, 1.0])
        affine[:3, 3] = self.config.origin_mm
        return {
            name: Volume(voxels=self.whole(name).detach().cpu().numpy().astype(np.float32), affine=affine)
            for name in self.values
        }

    def _places(self, affine: Affines, shape: tuple[int, int, int]) -> Float[Tensor, "b i j k 3"]:
        """Where each voxel of the crops lies in the grid, in the units and axis order of `grid_sample`."""
        device = affine.device
        origin, spacing, last = (
            torch.tensor(values, dtype=torch.float64, device=device)
            for values in (self.config.origin_mm, self.config.spacing_mm, [n - 1 for n in self.config.shape])
        )
        # In double precision up to here: far offsets and small voxels would cost digits that a ramp test sees.
        scale = 2 / (spacing * last)
        turn = affine[:, :3, :3].double() * scale[None, :, None]
        shift = (affine[:, :3, 3].double() - origin) * scale - 1
        turn, shift = turn.flip(1).float(), shift.flip(1).float()
        i, j, k = (torch.arange(n, dtype=torch.float32, device=device) for n in shape)
        along_i = i[None, :, None] * turn[:, None, :, 0]
        along_j = j[None, :, None] * turn[:, None, :, 1]
        along_k = k[None, :, None] * turn[:, None, :, 2] + shift[:, None]
        return along_i[:, :, None, None] + along_j[:, None, :, None] + along_k[:, None, None]

    def _refuse_unknown(self, sequence: str) -> None:
        if sequence not in self.values:
            raise ValueError(f"no template of {sequence}; this model was built for {', '.join(sorted(self.values))}")

    def _refuse_elsewhere(self, places: Tensor) -> None:
        if not bool((places.abs() <= 1).all(-1).any()):
            low = self.config.origin_mm
            high = [
                start + step * (size - 1)
                for start, step, size in zip(low, self.config.spacing_mm, self.config.shape, strict=True)
            ]
            box = ", ".join(f"{axis} {a:g} to {b:g}" for axis, a, b in zip("xyz", low, high, strict=True))
            raise ValueError(
                f"no voxel of these crops lies inside the template grid ({box} mm). Templates need studies registered "
                "to one atlas; set the templates' origin_mm, spacing_mm and shape to cover it"
            )
        self._placed = True
