"""Frozen, typed settings: build them, vary them with `but`, write them as JSON that names its class.

An unknown key is an error that names the nearest known one. A settings object read back from JSON is the class
that wrote it; only classes inside this package are ever looked up, so a settings file cannot run foreign code.
"""

from __future__ import annotations

import difflib
import importlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, model_serializer, model_validator
from pydantic.functional_serializers import SerializerFunctionWrapHandler
from pydantic.functional_validators import ModelWrapValidatorHandler

CLASS_KEY = "class"


class Settings(BaseModel):
    """Base of every settings class. Frozen; unknown keys are refused; JSON carries the class name."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    def but(self, **changes: Any) -> Self:
        """Return a copy with some values changed, validated again.

        Keys may be dotted to reach a nested settings object: ``config.but(**{"schedule.steps": 10})``. A part that is
        None begins with its usual values.

        Raises:
            ValueError: a key does not exist (the nearest known key is named) or a value does not fit.
        """
        return self._changed(changes, above="")

    def _changed(self, changes: Mapping[str, Any], *, above: str) -> Self:
        direct: dict[str, Any] = {}
        below: dict[str, dict[str, Any]] = {}
        for key, value in changes.items():
            name, dot, rest = key.partition(".")
            if name not in type(self).model_fields:
                raise ValueError(unknown_key(above + key, name, type(self).model_fields))
            if dot:
                below.setdefault(name, {})[rest] = value
            else:
                direct[name] = value
        if below.keys() & direct.keys():
            # A part that is replaced and changed as well: first the new part, then what is changed in it.
            start, direct = self._changed(direct, above=above), {}
        else:
            start = self
        values: dict[str, Any] = {field: getattr(start, field) for field in type(self).model_fields}
        for name, inner in below.items():
            child = values[name]
            if child is None:
                child = _usual_part(type(self).model_fields[name].annotation)
            if not isinstance(child, Settings):
                keys = ", ".join(f"{above}{name}.{key}" for key in inner)
                raise ValueError(f"{keys}: {name} is a {type(child).__name__}, it has no keys below it")
            values[name] = child._changed(inner, above=f"{above}{name}.")
        # Validated together: two settings may be right only with one another.
        return type(self).model_validate(values | direct)

    def set(self, assignments: Iterable[str]) -> Self:
        """Apply command-line changes such as ``schedule.steps=1000``; values are JSON, or plain text.

        Raises:
            ValueError: an assignment without ``=``, an unknown key, or a value of the wrong type.
        """
        changes: dict[str, Any] = {}
        for assignment in assignments:
            key, equals, text = assignment.partition("=")
            if not equals:
                raise ValueError(f"--set wants key=value, got {assignment!r}")
            changes[key.strip()] = _json_or_text(text.strip())
        return self.but(**changes)

    @classmethod
    def named(cls, name: str) -> Self:
        """Build from a short name such as ``plain_conv:small``; families that have files override this."""
        raise ValueError(f"{cls.__qualname__} has no named presets, got {name!r}")

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, each settings object naming its class."""
        dumped = self.model_dump(mode="json", serialize_as_any=True)
        return json.dumps(dumped, indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote; the result is of the named class, which must be `cls` or below it."""
        return cls.model_validate(json.loads(text))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a settings file, with the path in the error."""
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path.name}: cannot be read as {cls.__qualname__}: {error}") from error

    @model_serializer(mode="wrap")
    def _name_class(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        kind = type(self)
        return {CLASS_KEY: f"{kind.__module__}:{kind.__qualname__}", **handler(self)}

    @model_validator(mode="wrap")
    @classmethod
    def _build_named_class(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if isinstance(value, str):
            return cls.named(value)
        if isinstance(value, Mapping):
            fields = dict(value)
            if CLASS_KEY in fields:
                kind = _find_class(fields.pop(CLASS_KEY))
                if not issubclass(kind, cls):
                    raise ValueError(f"wanted a {cls.__qualname__}, the file names {kind.__qualname__}")
                if kind is not cls:
                    return kind.model_validate(fields)
            for key in fields:
                if key not in cls.model_fields:
                    raise ValueError(unknown_key(str(key), str(key), cls.model_fields))
            value = fields
        return handler(value)


def unknown_key(whole: str, name: str, known: Iterable[str], *, kind: str = "setting") -> str:
    """Say that a key, or another `kind` of name, does not exist, and which known one is nearest."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
    return f"{whole}: there is no {kind} {name!r}; {hint}"


def _usual_part(annotation: Any) -> Settings | None:
    """The settings object with its usual values that a part may be instead of None, if there is one such class."""
    kinds = [kind for kind in get_args(annotation) if isinstance(kind, type) and issubclass(kind, Settings)]
    return kinds[0]() if len(kinds) == 1 else None


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return {"True": True, "False": False, "None": None}.get(text, text)


def _find_class(name: str) -> type[Settings]:
    module_name, _, qualified = name.partition(":")
    if module_name.split(".")[0] != "tomoglot":
        raise ValueError(f"settings class {name!r} is not part of tomoglot; nothing outside it is ever imported")
    try:
        found: Any = importlib.import_module(module_name)
        for part in qualified.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"settings class {name!r} does not exist in this version of tomoglot") from error
    if not (isinstance(found, type) and issubclass(found, Settings)):
        raise ValueError(f"{name!r} is not a settings class")
    return found


def three_numbers(text: str, kind: Callable[[str], Any]) -> tuple[Any, ...]:
    """Read `2`, `2,2,3` or `96x112x96` as three numbers, one for each axis.

    Raises:
        ValueError: not numbers, or neither one nor three.
    """
    try:
        parts = [kind(part) for part in text.replace("x", ",").split(",")]
    except ValueError:
        parts = []
    if len(parts) not in (1, 3):
        raise ValueError(f"wanted one number or three with commas, got {text!r}")
    return tuple(parts * 3 if len(parts) == 1 else parts)
