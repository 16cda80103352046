"""Weights from a file into a module, with a full account of what fitted.

A file that fits half of a module loads "successfully" in most code, and the run trains from noise. Here every tensor
is matched, adapted, missing, unexpected or of another shape, the account is returned, and too small a share is refused
before anything is written.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from zipfile import BadZipFile, is_zipfile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

# Where training scripts keep the weights among their other state.
WEIGHT_KEYS = ("state_dict", "model", "net", "model_state_dict")
MOST_NAMED = 5

Adaptation = Literal["mean", "repeat", "sequence"]
Reshaped = tuple[str, tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """What a file filled of a module.

    Attributes:
        matched: names loaded.
        missing: names of the module that the file lacks; they keep their values.
        unexpected: names of the file that the module lacks, as written in the file.
        reshaped: (name, shape in the file, shape in the module) where the two differ; never loaded.
        adapted: the same three where the weights were loaded after `adapt_input` made their input channels fit.
        left_out: names of the file that the caller left out knowingly, with no place in the module.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[Reshaped, ...]
    adapted: tuple[Reshaped, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def wanted(self) -> int:
        """How many tensors the module has."""
        return len(self.matched) + len(self.adapted) + len(self.missing) + len(self.reshaped)

    @property
    def share(self) -> float:
        """Share of the module's tensors that were loaded, as they are or adapted, from 0 to 1."""
        return (len(self.matched) + len(self.adapted)) / self.wanted if self.wanted else 0.0

    def describe(self) -> str:
        """One paragraph: counts, the first names of each list, and the shapes that differ."""
        adapted = f" and {len(self.adapted)} adapted" if self.adapted else ""
        lines = [f"{len(self.matched)} of {self.wanted} tensors matched{adapted} ({self.share:.1%})"]
        lists = (
            ("adapted", _shapes(self.adapted)),
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("other shape", _shapes(self.reshaped)),
            ("left out", self.left_out),
        )
        for title, found in lists:
            if found:
                more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
                lines.append(f"{title}: {len(found)}: {', '.join(found[:MOST_NAMED])}{more}")
        return "; ".join(lines)


def load_weights(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    strip: str = "",
    min_share: float = 0.95,
    adapt: Adaptation | None = None,
    sources: Sequence[Mapping[str, Tensor]] = (),
) -> Coverage:
    """Copy tensors into a module by name and say what fitted.

    Args:
        module: what to fill; values are converted to its precision and device.
        tensors: names and values, from `read_weights`.
        strip: a prefix of the file's names to take off; names without it count as unexpected.
        min_share: the least share of the module's tensors that must match or be adapted.
        adapt: how to make a first convolution for another number of input channels fit, see `adapt_input`; None
            leaves it out as a tensor of another shape.
        sources: with ``adapt="sequence"``, one state a channel of the module, with the names of `tensors`.

    Raises:
        ValueError: fewer than `min_share` match; the module is then untouched and the account is in the message.
    """
    wanted = module.state_dict()
    original = _stripped(tensors, strip)
    given = original
    if adapt is not None:
        given = adapt_input(original, module, how=adapt, sources=[_stripped(source, strip) for source in sources])
    same = {name: value for name, value in given.items() if name in wanted and value.shape == wanted[name].shape}
    changed = {name for name in same if original[name].shape != same[name].shape}
    shapes = {name: (name, tuple(original[name].shape), tuple(wanted[name].shape)) for name in wanted if name in given}
    coverage = Coverage(
        matched=tuple(name for name in wanted if name in same and name not in changed),
        missing=tuple(name for name in wanted if name not in given),
        unexpected=tuple(
            name for name in tensors if not name.startswith(strip) or name.removeprefix(strip) not in wanted
        ),
        reshaped=tuple(shapes[name] for name in wanted if name in given and name not in same),
        adapted=tuple(shapes[name] for name in wanted if name in changed),
    )
    if coverage.share < min_share:
        raise ValueError(
            f"the weights fill {coverage.share:.1%} of the module, at least {min_share:.1%} is wanted, so nothing was "
            f"loaded: {coverage.describe()}. Check the preset and the prefix to strip (now {strip!r})."
        )
    module.load_state_dict(same, strict=False)
    return coverage


def adapt_input(
    tensors: Mapping[str, Tensor],
    module: nn.Module,
    *,
    how: Adaptation = "mean",
    sources: Sequence[Mapping[str, Tensor]] = (),
) -> dict[str, Tensor]:
    """Make the convolutions that read the input fit a module with another number of input channels.

    Changed are the weights of convolutions without groups whose shapes in file and module differ in the input channels
    alone (C_old in the file, C in the module, C = `module.in_channels` where the module says it); all else is as given.

    - ``mean``: w[:, c] = sum over C_old of w_old / C. Equal channels get the response that they got before; a channel
      of zeros takes 1 / C of it away.
    - ``repeat``: w[:, c] = w_old[:, c mod C_old], not divided: the response to equal channels is C / C_old times the
      former. For a layer that a normalisation follows, or where most channels are absent.
    - ``sequence``: w[:, c] = w of sources[c] / C, and the bias is the mean of the sources' biases, so that the response
      is the mean of what each source's encoder would say of its own channel. Equal sources give ``mean``. Layers past
      the first are taken from `tensors`.

    Args:
        tensors: a state with the module's own names.
        module: what it is to fit.
        how: see above.
        sources: for ``sequence`` only: one state a channel of the module, in order, each made for one channel.

    Raises:
        ValueError: `sources` are missing, too many, or do not fit; or they were given for another way.
    """
    if (how == "sequence") != bool(sources):
        raise ValueError(f"adapting by {how!r} got {len(sources)} sources; only 'sequence' takes them, one a channel")
    adapted = dict(tensors)
    for name in _input_convolutions(tensors, module):
        convolution = module.get_submodule(name)
        assert isinstance(convolution, nn.Conv3d)
        channels, weight = convolution.in_channels, tensors[_joined(name, "weight")]
        if how == "mean":
            adapted[_joined(name, "weight")] = weight.sum(dim=1, keepdim=True).expand_as(convolution.weight) / channels
        elif how == "repeat":
            adapted[_joined(name, "weight")] = weight[:, torch.arange(channels) % weight.shape[1]]
        else:
            weights = _of_sources(sources, _joined(name, "weight"), channels)
            if any(one.shape != weights[0].shape or one.shape[1] != 1 for one in weights):
                raise ValueError(f"{name}: every source must read one channel, and have equal shapes")
            adapted[_joined(name, "weight")] = torch.cat(weights, dim=1) / channels
            if convolution.bias is not None:
                biases = _of_sources(sources, _joined(name, "bias"), channels)
                adapted[_joined(name, "bias")] = torch.stack(biases).mean(dim=0)
    return adapted


def _input_convolutions(tensors: Mapping[str, Tensor], module: nn.Module) -> list[str]:
    """Names of the convolutions that read the input and have another number of channels in the file."""
    # A deeper layer of a wider encoder differs in its input channels too: it must not be averaged.
    channels = getattr(module, "in_channels", None)
    found = []
    for name, part in module.named_modules():
        given = tensors.get(_joined(name, "weight"))
        if not isinstance(part, nn.Conv3d) or part.groups != 1 or given is None or given.ndim != part.weight.ndim:
            continue
        ours, theirs = part.weight.shape, given.shape
        only_inputs = ours[1] != theirs[1] and ours[0] == theirs[0] and ours[2:] == theirs[2:]
        if only_inputs and channels in (None, ours[1]):
            found.append(name)
    return found


def _of_sources(sources: Sequence[Mapping[str, Tensor]], name: str, channels: int) -> list[Tensor]:
    if len(sources) != channels:
        raise ValueError(f"the module reads {channels} channels and {len(sources)} sources were given: give one each")
    lacking = sum(name not in source for source in sources)
    if lacking:
        raise ValueError(f"{lacking} of {len(sources)} sources hold no {name}")
    return [source[name] for source in sources]


def _stripped(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _joined(module: str, name: str) -> str:
    return f"{module}.{name}" if module else name


def _shapes(reshaped: Sequence[Reshaped]) -> tuple[str, ...]:
    return tuple(f"{name} (file {theirs}, module {ours})" for name, theirs, ours in reshaped)


# What torch's reader says of bytes that are no weights; its machine of opcodes runs on whatever it is given.
UNREADABLE = (
    SafetensorError,
    RuntimeError,
    OSError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    struct.error,
    BadZipFile,
)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read names and tensors from a safetensors file, or from a torch file with pickled code refused.

    A torch file may be a whole training state: the weights are looked for under the usual names.

    Raises:
        ValueError: the file is absent, cut short, holds code, or holds no tensor.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Mapped, not read: a training state holds two moments of every weight beside the weights.
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
    except FileNotFoundError as error:
        raise ValueError(f"{path.name}: there is no such weights file") from error
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path.name}: holds more than tensors, and reading it would run code from the file; "
            "save its state dict alone, best as .safetensors"
        ) from error
    except UNREADABLE as error:
        raise ValueError(
            f"{path.name}: cannot be read as weights, a .safetensors file or one of torch.save ({error!r})"
        ) from error
    if isinstance(loaded, Mapping):
        inner = next((loaded[key] for key in WEIGHT_KEYS if isinstance(loaded.get(key), Mapping)), loaded)
        tensors = {str(name): value for name, value in inner.items() if isinstance(value, Tensor)}
        if tensors:
            return tensors
    raise ValueError(f"{path.name}: holds no named tensor")
