"""Wrong shapes are told in every room that holds tensors; hints that cannot be judged are left alone."""

import random
from dataclasses import dataclass

import pytest
import torch
from jaxtyping import Float, TypeCheckError, jaxtyped
from torch import Tensor

import shapes
from tomoglot.batches.batch import Tokens
from tomoglot.encoders.vision import VisionEncoder
from tomoglot.objectives.contrastive import info_nce
from tomoglot.recipes.recipe import Recipe
from tomoglot.tasks.task import names


@jaxtyped(typechecker=shapes.checked)
@dataclass
class Listed:
    kept: list[int]


def test_a_wrong_shape_is_told_where_it_is_given() -> None:
    with pytest.raises(TypeCheckError):
        info_nce(torch.zeros(2, 3, 4), torch.zeros(2, 4), temperature=0.1)
    with pytest.raises(TypeCheckError):
        flat = torch.zeros(2, 5, dtype=torch.int64)
        Tokens(ids=flat, attended=flat > 0, sentence=flat, word=flat[0])
    encoder = VisionEncoder.Config.named("plain_conv:tiny").build()
    with pytest.raises(TypeCheckError):
        encoder(torch.zeros(1, 8, 8, 8))


def test_functions_of_recipes_and_tasks_are_checked_too() -> None:
    with pytest.raises(TypeCheckError):
        names(verb=3)  # type: ignore[arg-type]
    with pytest.raises(TypeCheckError):
        Recipe.Config.named(3)  # type: ignore[arg-type]


def test_checking_draws_nothing_from_the_generator_of_a_run() -> None:
    before = random.getstate()
    assert Listed(kept=[1, 2, 3]).kept == [1, 2, 3]
    assert random.getstate() == before
    with pytest.raises(TypeCheckError):
        Listed(kept=["1"])  # type: ignore[list-item]


def test_hints_that_cannot_be_judged_are_left_out_and_the_others_are_kept() -> None:
    class Fluent:
        @jaxtyped(typechecker=shapes.checked)
        def then(self, value: Float[Tensor, "b c"]) -> "Fluent":
            return self

    assert isinstance(Fluent().then(torch.zeros(1, 2)), Fluent)
    with pytest.raises(TypeCheckError):
        Fluent().then(torch.zeros(3))
