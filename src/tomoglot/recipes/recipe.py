"""The contract of a recipe: what it minimises, and what the tasks may ask of it afterwards.

A recipe is one file in this room, found by its file name, with a subclass of `Recipe` and presets that are plain
functions (`tiny()`, `paper()`). What a recipe hides, encodes and minimises stands at the top of its file.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

import tomoglot.recipes
from tomoglot.batches.batch import Batch
from tomoglot.config import Settings, unknown_key
from tomoglot.encoders.vision import VisionEncoder, VisionFeatures
from tomoglot.types import Scalar, SequenceEmbeddings, Volumes


class Recipe(nn.Module, ABC):
    """Base of every method."""

    class Config(Settings):
        """Settings of a method; subclasses add fields and say how to build."""

        @classmethod
        def named(cls, name: str) -> Self:
            """Look up ``file:preset`` (or ``file``, which means `tiny`) in this room.

            Raises:
                ValueError: no such recipe or preset; the nearest is named.
            """
            file, _, preset = name.partition(":")
            if file not in names():
                raise ValueError(unknown_key(name, file, names(), kind="recipe"))
            module = importlib.import_module(f"tomoglot.recipes.{file}")
            known = presets(file)
            if (preset or "tiny") not in known:
                raise ValueError(unknown_key(name, preset, known, kind="preset"))
            config = getattr(module, preset or "tiny")()
            assert isinstance(config, cls), f"recipes/{file}.py: {preset} does not return its settings"
            return config

        def build(self, sequences: tuple[str, ...]) -> Recipe:
            """Make the module for these sequence names."""
            raise NotImplementedError

    sequences: tuple[str, ...]
    # A method with a text side says False where it was trained without aligning it.
    aligned: bool = True
    _locked: Sequence[VisionEncoder] = ()

    @abstractmethod
    def losses(self, batch: Batch, *, progress: float) -> dict[str, Scalar]:
        """Weighted terms of the loss, by name; their sum is minimised. `progress` runs from 0 to 1 over the run."""

    @abstractmethod
    def encode(self, batch: Batch) -> SequenceEmbeddings:
        """Pooled features of each sequence, before any projection; zeros where a sequence was not acquired."""

    def readable(self, stored: Sequence[str]) -> tuple[str, ...]:
        """Sequences that are read where nothing is trained: those it was built for, then others of `stored`."""
        return self.sequences

    def features(self, batch: Batch) -> dict[str, VisionFeatures]:
        """What each sequence's encoder makes of it, maps and all, by sequence: rows of the studies that have it only.

        A sequence that no study of the batch has is left out.

        Raises:
            ValueError: there is no encoder for a sequence.
            NotImplementedError: the method has no vision encoder.
        """
        return {
            name: self.backbone(name)(batch.volumes[rows, column][:, None])
            for column, name in enumerate(batch.sequences)
            if (rows := batch.acquired[:, column]).any()
        }

    def backbone(self, sequence: str | None = None) -> VisionEncoder:
        """The vision encoder that a task may copy; `sequence` chooses where a method has one a sequence.

        Raises:
            ValueError: the method has an encoder a sequence, and none or an unknown one was named.
            NotImplementedError: the method has no vision encoder to give away.
        """
        raise NotImplementedError(f"{type(self).__name__} has no vision encoder that a task may copy")

    def lock_encoders(self) -> None:
        """Keep the vision encoders as they are, weights and running statistics; the rest learns on (Zhai 2022, sec. 3).

        Raises:
            NotImplementedError: as of `backbone`.
        """
        self._locked = [self.backbone(sequence) for sequence in self.sequences]
        for encoder in self._locked:
            encoder.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Switch between training and evaluation; locked encoders stay in the latter."""
        super().train(mode)
        for encoder in self._locked:
            encoder.eval()
        return self

    def templates(self, batch: Batch) -> Volumes:
        """What each sequence of the batch usually looks like where the crop lies in the world; shaped as the volumes.

        Raises:
            NotImplementedError: the method keeps no templates.
        """
        raise NotImplementedError(f"{type(self).__name__} keeps no templates; fill absent sequences with zero instead")

    def artefacts(self, folder: Path, *, simulated: bool) -> None:
        """Write what a person may want to look at into a run's folder, when the run ends; most methods have nothing."""

    def align_volumes(self, batch: Batch) -> SequenceEmbeddings:
        """Unit vectors of each sequence in the space shared with text; zeros where not acquired.

        Raises:
            NotImplementedError: the method has no text side.
        """
        raise NotImplementedError(f"{type(self).__name__} has no text side, so nothing can be asked in words")

    def align_texts(self, texts: list[str]) -> Float[Tensor, "t e"]:
        """Unit vectors of texts in the shared space, one a text.

        Raises:
            NotImplementedError: the method has no text side.
        """
        raise NotImplementedError(f"{type(self).__name__} has no text side, so nothing can be asked in words")

    def word_maps(self, batch: Batch, phrases: Sequence[str]) -> Float[Tensor, "b c q gi gj gk"]:
        """Where each phrase looks in each acquired sequence: shares that sum to 1 over the patches of `backbone`.

        Step n of an axis lies over the voxels of patch n. Zeros where a sequence was not acquired.

        Raises:
            NotImplementedError: the method aligns no words with places.
        """
        raise NotImplementedError(f"{type(self).__name__} aligns no words with places, so a phrase points nowhere")

    def fuse(self, batch: Batch, texts: Sequence[Sequence[str]]) -> Float[Tensor, "t f"]:
        """One vector a text, study by study: what it becomes after it read all the study's acquired sequences.

        A study may have any number of texts. Its volumes are read once for all of them.

        Raises:
            ValueError: texts of another number of studies, or a study has texts and no acquired sequence.
            NotImplementedError: in this method no text reads a volume.
        """
        raise NotImplementedError(f"{type(self).__name__} has no fusion in which a text reads a volume")


class OneEncoder(Recipe):
    """A recipe with one vision encoder, `vision`, that reads any sequence, a channel at a time."""

    vision: VisionEncoder

    def encode(self, batch: Batch) -> SequenceEmbeddings:
        """Pooled features of each acquired sequence, nothing hidden."""
        features = batch.volumes.new_zeros((*batch.acquired.shape, self.vision.embedding))
        if batch.acquired.any():
            pooled = self.vision(batch.volumes[batch.acquired][:, None]).pooled
            features[batch.acquired] = pooled.to(features.dtype)
        return features

    def backbone(self, sequence: str | None = None) -> VisionEncoder:
        """The one encoder."""
        return self.vision


def nothing_of(*modules: nn.Module) -> Scalar:
    """0, by way of every weight that is trained.

    What one device leaves out of its graph the others still reduce, in an order of their own: the run hangs or aborts.
    """
    sums = [weight.sum() for module in modules for weight in module.parameters() if weight.requires_grad]
    return torch.stack(sums).sum() * 0.0


def names() -> list[str]:
    """Recipes, by file name."""
    found = (module.name for module in pkgutil.iter_modules(tomoglot.recipes.__path__))
    return sorted(name for name in found if name != "recipe")


def presets(file: str) -> list[str]:
    """Presets of a recipe: the functions its file defines without arguments and lists in `PRESETS`."""
    module = importlib.import_module(f"tomoglot.recipes.{file}")
    return list(module.PRESETS)
