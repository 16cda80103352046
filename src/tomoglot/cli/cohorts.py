"""Verbs that bring studies in: simulate, ingest, check, look at, verify."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tomoglot.cli.options import (
    OutOption,
    WorkersOption,
    app,
)
from tomoglot.serve.progress import progress_bar

if TYPE_CHECKING:
    from tomoglot.store.plan import Plan


@app.command()
def phantom(
    cohort: Annotated[str, typer.Argument(help="Which cohort: brain.")],
    out: OutOption,
    subjects: Annotated[int, typer.Option(min=1)] = 200,
    seed: int = 0,
    spacing_mm: Annotated[float, typer.Option(min=1.0, max=6.0, help="Voxel size of the simulation.")] = 2.0,
    only: Annotated[str | None, typer.Option(help="Only studies of one kind: normal.")] = None,
    workers: WorkersOption = 2,
) -> None:
    """Write a simulated cohort: NIfTI in BIDS-like folders, studies.csv, reports, masks, truth and a montage."""
    from tomoglot.studies.phantom import draw_montage, write_cohort

    if cohort != "brain":
        raise ValueError(f"phantom knows the cohort brain, got {cohort!r}")
    with progress_bar(f"simulating {subjects} {cohort} studies") as report:
        table = write_cohort(
            out,
            subjects=subjects,
            seed=seed,
            spacing_mm=spacing_mm,
            only=only,
            workers=workers,
            progress=report,
        )
    print(f"wrote {table} (simulated studies) and {draw_montage(out, out / 'montage.png').name}")
    print(f"next: tomoglot ingest {out} --out STORE")


def _plan(spacing_mm: str | None, field: str | None, changes: list[str] | None, run: Path | None) -> Plan:
    from tomoglot.config import three_numbers
    from tomoglot.store.plan import Plan

    if run is not None:
        from tomoglot.checkpoint import load_checkpoint

        if spacing_mm or field or changes:
            raise ValueError("--plan-of takes the whole plan of a run: leave out --spacing-mm, --field and --set")
        return load_checkpoint(run).card.plan
    sizes: dict[str, Any] = {} if spacing_mm is None else {"spacing_mm": three_numbers(spacing_mm, float)}
    sizes |= {} if field is None else {"field_voxels": three_numbers(field, int)}
    return Plan(**sizes).set(changes or [])


@app.command()
def ingest(
    source: Annotated[
        Path, typer.Argument(help="A table, a folder with studies.csv, a BIDS folder, or a known layout.")
    ],
    out: OutOption,
    reports: Annotated[Path | None, typer.Option(help="A table of reports, joined by study.")] = None,
    layout: Annotated[
        str | None, typer.Option(help="Name of a public data set's layout, when it is not recognised.")
    ] = None,
    plan_of: Annotated[
        Path | None, typer.Option(help="Prepare exactly as this run's training data were (its card's plan).")
    ] = None,
    spacing_mm: Annotated[
        str | None, typer.Option(help="Resample to this: 2 or 1,1,3. Default: the finest series'.")
    ] = None,
    field: Annotated[str | None, typer.Option(help="Keep a centred field of voxels: 96 or 96,112,96.")] = None,
    plan: Annotated[
        list[str] | None, typer.Option("--set", help="Change a plan setting: intensity=window. Repeatable.")
    ] = None,
    workers: WorkersOption = 2,
    seed: Annotated[int, typer.Option(help="Seed of the split, where the source has none.")] = 0,
) -> None:
    """Raw studies into a curated store: read strictly, reject with reasons, split by subject, write atomically."""
    from tomoglot.store.writer import write_store
    from tomoglot.studies.source import read_source

    sources = read_source(source, layout=layout, reports=reports)
    chosen = _plan(spacing_mm, field, plan, plan_of)
    with progress_bar(f"ingesting {len(sources.studies)} studies") as report:
        done = write_store(sources, out, chosen, workers=workers, seed=seed, progress=report)
    print(
        f"{done.accepted} studies stored, {done.skipped} were there already, "
        f"{done.rejected} rejections (rejected.parquet)"
    )
    if done.accepted + done.skipped == 0:
        raise ValueError(f"no study of {source.name} was accepted; {out.name}/rejected.parquet says why")
    print(f"next: tomoglot inspect {out}")


@app.command()
def curate(source: Path, out: OutOption, layout: str | None = None, workers: WorkersOption = 2) -> None:
    """Only the checks: accepted.parquet and rejected.parquet, no voxels written."""
    from tomoglot.studies.curate import curate as curate_sources
    from tomoglot.studies.source import read_source

    sources = read_source(source, layout=layout)
    with progress_bar(f"checking {len(sources.studies)} studies") as report:
        done = curate_sources(sources, out, workers=workers, progress=report)
    print(f"{done.num_accepted} studies accepted, {done.num_rejected} rejections; tables in {out}")


@app.command()
def inspect(store: Path, png: Annotated[Path | None, typer.Option(help="Draw it here.")] = None) -> None:
    """What a store holds: subjects, sequences, spacing, what is missing, reports, labels."""
    from rich.console import Console

    from tomoglot.serve.terminal import describe
    from tomoglot.store.inspect import draw, summarise
    from tomoglot.store.reader import Store

    opened = Store.open(store)
    Console().print(*describe(summarise(opened), opened.sequences), sep="\n")
    if png is not None:
        draw(opened, png)
        print(f"drawn in {png}")


@app.command()
def verify(store: Path, workers: WorkersOption = 2) -> None:
    """Read every byte of a store against its digests; exit code 1 if anything is not as it was written."""
    from tomoglot.store.verify import verify as verify_store

    with progress_bar("verifying") as report:
        faults = verify_store(store, workers=max(1, workers), progress=report)
    for fault in faults:
        print(f"{fault.file}: {fault.what}")
    print("every digest holds" if not faults else f"{len(faults)} faults; ingest those studies again into a new store")
    if faults:
        raise SystemExit(1)
