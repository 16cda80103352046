"""Verbs that measure how results depend on the means: `bench scaling`, and what may come beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from tomoglot.cli.options import OutOption, SetOption, SplitOption, StoreOption, app
from tomoglot.serve.progress import progress_bar

bench = typer.Typer(no_args_is_help=True, help="Measure how results depend on data and size.")
app.add_typer(bench, name="bench")


@bench.command()
def scaling(
    recipe: Annotated[str, typer.Argument(help="recipe:preset, for example medmap:tiny.")],
    store: StoreOption = Path("store"),
    out: OutOption = Path("runs/scaling"),
    fractions: Annotated[str, typer.Option(help="Shares of the training subjects, with commas.")] = "0.1,0.3,1",
    widths: Annotated[str, typer.Option(help="What the encoder's widths are multiplied by.")] = "0.5,1,2",
    seeds: Annotated[str, typer.Option(help="One training each.")] = "0",
    task: Annotated[str | None, typer.Option(help="Also score this task, for example zero_shot.")] = None,
    split: SplitOption = None,
    epochs: Annotated[
        float | None, typer.Option(help="Passes over each cell's studies. Default: the recipe's steps in every cell.")
    ] = None,
    group: Annotated[int | None, typer.Option(help="Held-out subjects whose loss is taken together.")] = None,
    changes: SetOption = None,
) -> None:
    """Pre-train on shares of the subjects by widths of the encoder, and fit a power law with intervals."""
    from tomoglot.run import RunConfig
    from tomoglot.scaling import ScalingConfig, run_scaling

    config = ScalingConfig(
        run=RunConfig.named(recipe).set(changes or []),
        fractions=_numbers("--fractions", fractions, float),
        widths=_numbers("--widths", widths, float),
        seeds=_numbers("--seeds", seeds, int),
        split=split or "test",
        task=task,
        epochs=epochs,
        group=group,
    )
    with progress_bar("training") as report:
        result = run_scaling(config, store, out, progress=report)
    print("\n".join(result.lines()))
    print(f"written to {out}: scaling.json, table.csv, scaling.png")


def _numbers(option: str, text: str, kind: Callable[[str], Any]) -> tuple[Any, ...]:
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{option} wants numbers with commas between them, got {text!r}") from None
