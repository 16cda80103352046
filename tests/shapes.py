"""The checker of shapes in signatures while testing: beartype, on every hint that it can judge."""

from __future__ import annotations

import random
import typing
from collections.abc import Callable
from typing import Any, TypeVar

from beartype import beartype
from beartype._check.code import codemain
from beartype.door import is_bearable
from beartype.roar import BeartypeDecorHintException

# Of a list it looks at one item, drawn at random: from a generator of its own, or runs that are checked would draw
# other numbers than runs that are not (a checkpoint keeps the state of Python's generator). There is no setting for it.
codemain.getrandbits = random.Random(0).getrandbits  # type: ignore[attr-defined]

F = TypeVar("F", bound=Callable[..., Any])


def checked(function: F) -> F:
    """Check a function's arguments and result, but for hints that beartype refuses.

    Those are `Self` (the import hook decorates outside of the class), protocols that cannot be asked at run time, and
    names that a module imports for the type checker only.
    """
    function.__annotations__ = {name: hint for name, hint in function.__annotations__.items() if _known(hint)}
    return beartype(function)


def _known(hint: Any) -> bool:
    if isinstance(hint, str | typing.ForwardRef):
        return False
    try:
        is_bearable(None, hint)
    except BeartypeDecorHintException:
        return False
    return all(_known(part) for part in typing.get_args(hint) if not isinstance(part, list | str | bytes))
