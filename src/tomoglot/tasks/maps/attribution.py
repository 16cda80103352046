"""Where in a study an answer comes from: one map a sequence and finding, on the voxels that the network was given.

Three ways. Gradients (Grad-CAM, Selvaraju 2017): the channels of a map of the encoder's pyramid, each weighted by the
mean gradient of the answer over its places, summed, and what is negative cut off. `each_place` weights each place by
its own gradient instead (HiResCAM, Draelos 2020), which is exact for a linear layer after pooling, maxima included.
Occlusion: what the answer loses when a box is blanked in one sequence (Zeiler 2014). Attention: what a network with a
transformer over its tokens says of itself, equal for all findings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from tomoglot.batches.batch import Batch
from tomoglot.encoders.vision import VisionEncoder, VisionFeatures

Method = Literal["gradient", "each_place", "occlusion", "attention"]
OCCLUDED_AT_ONCE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is explained: a network, how it answers a batch (one number a study and finding), and the findings."""

    net: nn.Module
    answer: Callable[[Batch], Float[Tensor, "b f"]]
    findings: tuple[str, ...]
    attention: Callable[[Batch], Float[Tensor, "b c i j k"]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """Way and fineness: `stages` of the pyramid for gradients (None: all that reach the answer), `box` voxels."""

    method: Method = "each_place"
    stages: tuple[int, ...] | None = None
    box: int = 8


def explain(asked: Asked, study: Batch, findings: Sequence[str], how: How) -> NDArray[np.float32]:
    """Maps (f, s, i, j, k) of one study: of each finding asked for and each acquired sequence, in the batch's order.

    Where several stages are read, a map is the mean of theirs, each over its highest value in any sequence.

    Raises:
        ValueError: the batch is not one study, the network has no such maps, or they do not bear on the answer.
    """
    if len(study) != 1 or not study.acquired.any():
        raise ValueError("one study at a time is explained, with at least one acquired sequence")
    places = [asked.findings.index(finding) for finding in findings]
    if how.method == "attention":
        return _attention(asked, study, len(places))
    if how.method == "occlusion":
        return _occlusion(asked, study, places, box=how.box)
    return _gradients(asked, study, places, how)


def _gradients(asked: Asked, study: Batch, places: list[int], how: How) -> NDArray[np.float32]:
    # Of the volumes, so that there is a graph even where every weight is frozen.
    shown = replace(study, volumes=study.volumes.detach().clone().requires_grad_(True))
    with torch.enable_grad(), _listening(asked.net) as heard:
        answers = asked.answer(shown)[0]
    rows = sum(len(features.pyramid[0]) for _, features in heard)
    if rows != int(study.acquired.sum()):
        raise ValueError(
            f"the network encoded {rows} volumes of a study with {int(study.acquired.sum())} sequences: which map is "
            "whose cannot be told; choose method occlusion"
        )
    num_stages = len(heard[0][1].pyramid)
    stages = range(num_stages) if how.stages is None else how.stages
    if not all(-num_stages <= stage < num_stages for stage in stages):
        raise ValueError(f"stages {tuple(stages)}: the encoder's pyramid has {num_stages} maps")
    shape = study.volumes.shape[2:]
    found = np.zeros((len(places), rows, *shape), dtype=np.float32)
    reached = 0
    for stage in stages:
        maps = [features.pyramid[stage] for _, features in heard]
        weighted = [_weighted(answers[place], maps, each_place=how.method == "each_place") for place in places]
        if weighted[0] is None:
            continue
        reached += 1
        for at, part in enumerate(weighted):
            assert part is not None
            highest = part.max()
            if highest > 0:
                found[at] += [_spread(one, shape, heard[0][0], stage) for one in part / highest]
    if not reached:
        raise ValueError(
            f"no gradient of the answer reaches stages {tuple(stages)} of {type(heard[0][0]).__name__}'s pyramid; -1, "
            "the coarsest, always leads to the pooled vector"
        )
    return np.asarray(found / reached, dtype=np.float32)


def _weighted(answer: Tensor, maps: list[Tensor], *, each_place: bool) -> NDArray[np.float32] | None:
    """Sum over channels of weight times map, cut off at zero: (s, i, j, k); None where the answer ignores the maps."""
    gradients = torch.autograd.grad(answer, maps, retain_graph=True, allow_unused=True)
    parts = []
    for gradient, values in zip(gradients, maps, strict=True):
        if gradient is None:
            return None
        weights = gradient if each_place else gradient.mean(dim=(2, 3, 4), keepdim=True)
        parts.append((weights * values).sum(dim=1).clamp(min=0))
    return torch.cat(parts).detach().float().cpu().numpy()


def _occlusion(asked: Asked, study: Batch, places: list[int], *, box: int) -> NDArray[np.float32]:
    columns = study.acquired[0].nonzero().flatten().tolist()
    shape = study.volumes.shape[2:]
    lost = np.zeros((len(places), len(columns), *(-(-size // box) for size in shape)), dtype=np.float32)
    corners: list[tuple[int, ...]] = list(product(*map(range, lost.shape[2:])))
    jobs = [
        (at, column, corner)
        for at, column in enumerate(columns)
        for corner in corners
        if study.volumes[0, column][_slices(corner, box)].any()  # zero is where nothing was imaged
    ]
    with torch.inference_mode():
        whole = asked.answer(study)[0, places].float().cpu().numpy()
        for begin in range(0, len(jobs), OCCLUDED_AT_ONCE):
            some = jobs[begin : begin + OCCLUDED_AT_ONCE]
            volumes = study.volumes.repeat(len(some), 1, 1, 1, 1)
            for row, (_, column, corner) in enumerate(some):
                volumes[row, column][_slices(corner, box)] = 0
            answers = asked.answer(_repeated(study, volumes))[:, places].float().cpu().numpy()
            for row, (at, _, corner) in enumerate(some):
                i, j, k = corner
                lost[:, at, i, j, k] = np.maximum(whole - answers[row], 0)
    return _spread_all(lost, shape, stride=box, centre=(box - 1) / 2)


def _attention(asked: Asked, study: Batch, count: int) -> NDArray[np.float32]:
    if asked.attention is None:
        raise ValueError("attention is what a detector with a transformer over tokens has; choose another method")
    encoder = next(module for module in asked.net.modules() if isinstance(module, VisionEncoder))
    with torch.inference_mode():
        maps = asked.attention(study)[0][study.acquired[0]].float().cpu().numpy()
    shape = study.volumes.shape[2:]
    stages = [
        stage
        for stage, stride in enumerate(encoder.strides)
        if tuple(-(-size // stride) for size in shape) == maps.shape[1:]
    ]
    if not stages:
        raise ValueError(f"the network's attention is on {maps.shape[1:]} places, which is no map of its encoder")
    spread = np.stack([_spread(one, shape, encoder, stages[0]) for one in maps])
    return np.repeat(spread[None], count, axis=0)


def _spread(map_: NDArray[np.float32], shape: Sequence[int], encoder: VisionEncoder, stage: int) -> NDArray[np.float32]:
    return _spread_all(map_, shape, stride=encoder.strides[stage], centre=encoder.centre(stage))


def spread_patches(maps: NDArray[np.float32], shape: Sequence[int], edges: Sequence[int]) -> NDArray[np.float32]:
    """Steps of a map (..., gi, gj, gk) to voxels, as `explain` does it: step n lies in the middle of patch n.

    `edges` are the voxels of a patch along each axis; the last patch may reach beyond the volume.

    Raises:
        ValueError: so many patches are not what tiles a volume of this shape.
    """
    if tuple(maps.shape[-3:]) != tuple(-(-size // edge) for size, edge in zip(shape, edges, strict=True)):
        raise ValueError(f"a map of {maps.shape[-3:]} patches of {tuple(edges)} voxels does not tile {tuple(shape)}")
    for axis, size, edge in zip((-3, -2, -1), shape, edges, strict=True):
        maps = _along(maps, axis, size, step=float(edge), first=(edge - 1) / 2)
    return np.ascontiguousarray(maps, dtype=np.float32)


def _spread_all(maps: NDArray[np.float32], shape: Sequence[int], *, stride: int, centre: float) -> NDArray[np.float32]:
    """Steps of a map (..., i, j, k) to voxels, by linear interpolation; beyond the first and the last, as there."""
    for axis, size in zip((-3, -2, -1), shape, strict=True):
        steps = maps.shape[axis]
        step, first = float(stride), centre
        if steps not in (size // stride, -(-size // stride)):  # an image's axis, or a patch with unequal edges
            step, first = size / steps, (size / steps - 1) / 2
        maps = _along(maps, axis, size, step=step, first=first)
    return np.ascontiguousarray(maps, dtype=np.float32)


def _along(maps: NDArray[np.float32], axis: int, size: int, *, step: float, first: float) -> NDArray[np.float32]:
    """One axis to `size` voxels, of steps that are centred on `first` and a `step` apart."""
    steps = maps.shape[axis]
    at = np.clip((np.arange(size) - first) / step, 0, steps - 1)
    low = np.minimum(at.astype(int), max(steps - 2, 0))
    share = (at - low).astype(np.float32)
    high = np.minimum(low + 1, steps - 1)
    moved = np.moveaxis(maps, axis, -1)
    return np.moveaxis(moved[..., low] * (1 - share) + moved[..., high] * share, -1, axis)


def _repeated(study: Batch, volumes: Tensor) -> Batch:
    """The study as often as there are volumes, with these; what is not needed to answer is left out."""
    count = len(volumes)
    return replace(
        study,
        volumes=volumes,
        acquired=study.acquired.repeat(count, 1),
        affine=study.affine.repeat(count, 1, 1),
        studies=study.studies * count,
        subjects=study.subjects.repeat(count),
        reports=study.reports * count,
        labels=study.labels.repeat(count, 1),
        labelled=study.labelled.repeat(count, 1),
        masks=None,
        tokens=None,
    )


def _slices(corner: tuple[int, ...], box: int) -> tuple[slice, ...]:
    return tuple(slice(box * at, box * (at + 1)) for at in corner)


@contextmanager
def _listening(net: nn.Module) -> Iterator[list[tuple[VisionEncoder, VisionFeatures]]]:
    """Every vision encoder of a network and what it gave out, in the order of the calls."""
    heard: list[tuple[VisionEncoder, VisionFeatures]] = []

    def hear(module: nn.Module, inputs: Any, output: VisionFeatures) -> None:
        assert isinstance(module, VisionEncoder)
        heard.append((module, output))

    hooks = [module.register_forward_hook(hear) for module in net.modules() if isinstance(module, VisionEncoder)]
    try:
        yield heard
    finally:
        for hook in hooks:
            hook.remove()
    if not heard:
        raise ValueError(f"{type(net).__name__} answered without a vision encoder: there is no map to explain it by")
