"""The application object, and the options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Pre-training on 3D medical images and the reports written about them. Research use only.",
)


def _not_a_file(out: Path | None) -> Path | None:
    """Refuse a file, and a folder below one, while options are read: before anything is loaded."""
    for place in () if out is None else (out, *out.parents):
        if place.exists() and not place.is_dir():
            raise ValueError(f"{place.name} is a file; --out wants a folder")
    return out


StoreOption = Annotated[Path, typer.Option("--store", help="A store written by `tomoglot ingest`.")]
OutOption = Annotated[Path, typer.Option("--out", help="Where to write.", callback=_not_a_file)]
FromOption = Annotated[Path, typer.Option("--from", help="A run folder, or one checkpoint folder in it.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Change a setting: schedule.steps=1000. Repeatable.")
]
SplitOption = Annotated[str | None, typer.Option("--split", help="Which studies: test (the default), val, train, all.")]
ControlsOption = Annotated[
    bool | None,
    typer.Option("--controls/--no-controls", help="Also score the controls: from scratch, image removed (default)."),
]
ResultOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        help="Folder of the result and of predicted files (default: the run's results/, no files).",
        callback=_not_a_file,
    ),
]
WorkersOption = Annotated[int, typer.Option("--workers", min=0, help="Worker processes (threads while training).")]
KeyOption = Annotated[
    Path, typer.Option("--key", help="File of the key that makes pseudonyms; made, for you alone, if it is not there.")
]
