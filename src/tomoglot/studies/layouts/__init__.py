"""Layouts of public data sets, a file each, found by its file name: `matches(root)` and `read(root)`."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from types import ModuleType

from tomoglot.studies.source import Sources


def names() -> tuple[str, ...]:
    """Names of the layouts: the files of this folder."""
    return tuple(sorted(found.name for found in pkgutil.iter_modules(__path__)))


def read(name: str, root: Path) -> Sources:
    """Read the studies under `root` as the layout `name`.

    Raises:
        ValueError: there is no such layout, or `root` does not look like it.
    """
    layout = _module(name)
    if not layout.matches(root):
        raise ValueError(f"{root.name!r} does not look like {name}: {(layout.__doc__ or '').splitlines()[0]}")
    sources: Sources = layout.read(root)
    return sources


def detect(root: Path) -> str | None:
    """Name of the first layout that `root` looks like, or None."""
    return next((name for name in names() if _module(name).matches(root)), None)


def _module(name: str) -> ModuleType:
    if name not in names():
        raise ValueError(f"there is no layout {name!r}; known: {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")
