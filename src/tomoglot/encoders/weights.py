"""Weights from a file into a module, with a full account of what fitted.

A file that fits half of a module loads "successfully" in most code, and the run trains from noise. Here every tensor
is matched, missing, unexpected or of another shape, the account is returned, and too small a share is refused before
anything is written.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

# Where training scripts keep the weights among their other state.
WEIGHT_KEYS = ("state_dict", "model", "net", "model_state_dict")
MOST_NAMED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """What a file filled of a module.

    Attributes:
        matched: names loaded.
        missing: names of the module that the file lacks; they keep their values.
        unexpected: names of the file that the module lacks, as written in the file.
        reshaped: (name, shape in the file, shape in the module) where the two differ; never loaded.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]

    @property
    def share(self) -> float:
        """Share of the module's tensors that were loaded, from 0 to 1."""
        wanted = len(self.matched) + len(self.missing) + len(self.reshaped)
        return len(self.matched) / wanted if wanted else 0.0

    def describe(self) -> str:
        """One paragraph: counts, the first names of each list, and the shapes that differ."""
        wanted = len(self.matched) + len(self.missing) + len(self.reshaped)
        lines = [f"{len(self.matched)} of {wanted} tensors matched ({self.share:.1%})"]
        shapes = tuple(f"{name} (file {theirs}, module {ours})" for name, theirs, ours in self.reshaped)
        for title, found in (("missing", self.missing), ("unexpected", self.unexpected), ("other shape", shapes)):
            if found:
                more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
                lines.append(f"{title}: {len(found)}: {', '.join(found[:MOST_NAMED])}{more}")
        return "; ".join(lines)


def load_weights(
    module: nn.Module, tensors: Mapping[str, Tensor], *, strip: str = "", min_share: float = 0.95
) -> Coverage:
    """Copy tensors into a module by name and say what fitted.

    Args:
        module: what to fill; values are converted to its precision and device.
        tensors: names and values, from `read_weights`.
        strip: a prefix of the file's names to take off; names without it count as unexpected.
        min_share: the least share of the module's tensors that must match.

    Raises:
        ValueError: fewer than `min_share` match; the module is then untouched and the account is in the message.
    """
    wanted = module.state_dict()
    given = {name.removeprefix(strip): value for name, value in tensors.items() if name.startswith(strip)}
    same = {name: value for name, value in given.items() if name in wanted and value.shape == wanted[name].shape}
    coverage = Coverage(
        matched=tuple(name for name in wanted if name in same),
        missing=tuple(name for name in wanted if name not in given),
        unexpected=tuple(
            name for name in tensors if not name.startswith(strip) or name.removeprefix(strip) not in wanted
        ),
        reshaped=tuple(
            (name, tuple(given[name].shape), tuple(wanted[name].shape))
            for name in wanted
            if name in given and name not in same
        ),
    )
    if coverage.share < min_share:
        raise ValueError(
            f"the weights fill {coverage.share:.1%} of the module, at least {min_share:.1%} is wanted, so nothing was "
            f"loaded: {coverage.describe()}. Check the preset and the prefix to strip (now {strip!r})."
        )
    module.load_state_dict(same, strict=False)
    return coverage


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read names and tensors from a safetensors file, or from a torch file with pickled code refused.

    A torch file may be a whole training state: the weights are looked for under the usual names.

    Raises:
        ValueError: the file is absent, cut short, holds code, or holds no tensor.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ValueError(f"{path.name}: there is no such weights file") from error
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path.name}: holds more than tensors, and reading it would run code from the file; "
            "save its state dict alone, best as .safetensors"
        ) from error
    except (SafetensorError, RuntimeError, OSError, EOFError) as error:
        raise ValueError(f"{path.name}: cannot be read as weights: {error}") from error
    if isinstance(loaded, Mapping):
        inner = next((loaded[key] for key in WEIGHT_KEYS if isinstance(loaded.get(key), Mapping)), loaded)
        tensors = {str(name): value for name, value in inner.items() if isinstance(value, Tensor)}
        if tensors:
            return tensors
    raise ValueError(f"{path.name}: holds no named tensor")
