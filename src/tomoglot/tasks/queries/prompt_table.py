"""The text that a detector reads: vectors of the sentences for every finding asked, the same for every study."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tomoglot.encoders.text import FrozenTextEncoder, TextEncoder
from tomoglot.recipes.recipe import Recipe
from tomoglot.tasks.queries.prompts import PROMPTS


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptTable:
    """Vectors of the wordings of all findings asked (t, e), and the finding that each belongs to (t,)."""

    vectors: Float[Tensor, "t e"]
    finding: Int[Tensor, " t"]

    @classmethod
    def of(cls, findings: tuple[str, ...], encoder: TextEncoder | None) -> PromptTable:
        """Ask the frozen encoder; without one the table has zeros of its shape."""
        wordings = [wordings_of(name) for name in findings]
        sentences = [sentence for several in wordings for sentence in several]
        vectors = torch.zeros(len(sentences), 1) if encoder is None else encoder.embed(sentences).float().cpu()
        owner = [at for at, several in enumerate(wordings) for _ in several]
        return cls(vectors=vectors, finding=torch.tensor(owner))


def wordings_of(finding: str) -> tuple[str, ...]:
    """The packaged sentences for a finding's presence, or two plain ones where there are none."""
    if finding in PROMPTS:
        return PROMPTS[finding].present
    words = finding.replace("_", " ")
    return (f"There is {words}.", f"Findings suggest {words}.")


def text_encoder(recipe: Recipe) -> FrozenTextEncoder:
    """That of the recipe, or the packaged one where it has none."""
    own = getattr(recipe, "text", None)
    return own if isinstance(own, FrozenTextEncoder) else TextEncoder.Config().build()
