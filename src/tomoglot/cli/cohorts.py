"""Verbs that bring studies in: simulate, ingest, check, look at, verify."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from tomoglot.cli.options import (
    OutOption,
    WorkersOption,
    app,
)
from tomoglot.serve.progress import progress_bar

if TYPE_CHECKING:
    from tomoglot.store.plan import Plan
    from tomoglot.store.writer import IngestSummary
    from tomoglot.studies.source import Sources


@app.command()
def phantom(
    cohort: Annotated[str, typer.Argument(help="Which cohort: brain, liver, chest or radiographs.")],
    out: OutOption,
    subjects: Annotated[int, typer.Option(min=1)] = 200,
    seed: int = 0,
    spacing_mm: Annotated[float, typer.Option(min=1.0, max=6.0, help="Voxel size of the simulation.")] = 2.0,
    only: Annotated[str | None, typer.Option(help="Only studies of one kind, such as normal.")] = None,
    sequences: Annotated[str | None, typer.Option(help="Only these may be acquired, with commas: t1w,t2w.")] = None,
    workers: WorkersOption = 2,
) -> None:
    """Write a simulated cohort: NIfTI in BIDS-like folders, tables, reports, masks, truth, questions, a montage."""
    from tomoglot.studies.phantom import draw_montage, write_cohort

    with progress_bar(f"simulating {subjects} {cohort} studies") as report:
        table = write_cohort(
            out,
            cohort=cohort,
            subjects=subjects,
            seed=seed,
            spacing_mm=spacing_mm,
            only=only,
            sequences=None if sequences is None else [name.strip() for name in sequences.split(",")],
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
        from tomoglot.store.layout import PLAN_FILE

        if spacing_mm or field or changes:
            raise ValueError(
                "--plan-of takes the whole plan of a run or a store: leave out --spacing-mm, --field and --set"
            )
        if (run / PLAN_FILE).is_file():
            return Plan.load(run / PLAN_FILE)
        return load_checkpoint(run).card.plan
    sizes: dict[str, Any] = {} if spacing_mm is None else {"spacing_mm": three_numbers(spacing_mm, float)}
    sizes |= {} if field is None else {"field_voxels": three_numbers(field, int)}
    return Plan(**sizes).set(changes or [])


def _read(source: Path, out: Path, options: SourceOptions) -> Sources:
    """Read the source; the key of raw DICOM is made beside what is written, unless one was named."""
    from tomoglot.studies.pseudonym import Pseudonyms
    from tomoglot.studies.source import read_source

    key = options.key or out.with_name(f"{out.name}.key")

    def pseudonyms() -> Pseudonyms:
        made = Pseudonyms.from_file(key)
        print(f"raw DICOM: names are pseudonyms made with {key}; keep that file, and keep it apart from the data")
        return made

    with progress_bar("reading headers") as report:
        return read_source(
            # Whole, so that workers on other machines find the files.
            source.absolute(),
            layout=options.layout,
            reports=options.reports,
            columns=_pairs("--column", options.columns),
            report_columns=_pairs("--report-column", options.report_columns),
            report_encoding=options.report_encoding,
            pseudonyms=pseudonyms,
            workers=max(1, options.workers),
            resample_tilt=options.resample_tilt,
            subject_from_study=options.subject_from_study,
            progress=report,
        )


def _pairs(option: str, given: list[str] | None) -> dict[str, str] | None:
    """`THEIRS=OURS`, as often as the option was given."""
    parts = [one.rpartition("=") for one in given or []]
    if any(not (theirs and ours) for theirs, _, ours in parts):
        raise ValueError(f"{option} wants THEIRS=OURS, a column's name in the table and ours")
    return {theirs: ours for theirs, _, ours in parts} or None


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions:
    """What `ingest` and `curate` were told about their source."""

    layout: str | None
    reports: Path | None
    columns: list[str] | None
    report_columns: list[str] | None
    report_encoding: str | None
    key: Path | None
    workers: int
    resample_tilt: bool
    subject_from_study: bool

    @classmethod
    def of(cls, context: typer.Context) -> Self:
        """Those of a verb that declares them all: each verb's own list of names would be the same."""
        return cls(**{field.name: context.params[field.name] for field in fields(cls)})


SourceArgument = Annotated[
    Path,
    typer.Argument(help="Raw DICOM (folder, zip, DICOMDIR), a table, a folder with studies.csv, BIDS, a known layout."),
]
ReportsOption = Annotated[
    Path | None,
    typer.Option("--reports", help="A table of reports or a folder of .txt, joined by accession, study or subject."),
]
LayoutOption = Annotated[
    str | None, typer.Option("--layout", help="Name of a public data set's layout, when it is not recognised.")
]
ColumnOption = Annotated[
    list[str] | None, typer.Option("--column", help="A column of the table of studies: THEIRS=OURS. Repeatable.")
]
ReportColumnOption = Annotated[
    list[str] | None,
    typer.Option("--report-column", help="A column of the table of reports: THEIRS=OURS. Repeatable."),
]
EncodingOption = Annotated[
    str | None, typer.Option("--report-encoding", help="Of the reports, when it is not recognised: cp1252.")
]
OwnKeyOption = Annotated[
    Path | None,
    typer.Option(
        "--key", help="Raw DICOM: file of the key that makes pseudonyms (default: OUT.key, made at first use)."
    ),
]
TiltOption = Annotated[
    bool, typer.Option("--resample-tilt", help="Raw DICOM: resample CT of a tilted gantry instead of refusing it.")
]
NoPatientOption = Annotated[
    bool,
    typer.Option("--subject-from-study", help="Raw DICOM: a study without a Patient ID is of another person each."),
]
SchedulerOption = Annotated[
    str | None,
    typer.Option("--scheduler", help="Address of a Dask scheduler whose workers see the same files; or local."),
]


@app.command()
def ingest(
    context: typer.Context,
    source: SourceArgument,
    out: OutOption,
    reports: ReportsOption = None,
    layout: LayoutOption = None,
    columns: ColumnOption = None,
    report_columns: ReportColumnOption = None,
    report_encoding: EncodingOption = None,
    key: OwnKeyOption = None,
    resample_tilt: TiltOption = False,
    subject_from_study: NoPatientOption = False,
    plan_of: Annotated[
        Path | None, typer.Option(help="Prepare exactly as a run's training data (its card's plan), or as a store.")
    ] = None,
    spacing_mm: Annotated[
        str | None, typer.Option(help="Resample to this: 2 or 1,1,3. Default: the finest series'.")
    ] = None,
    field: Annotated[str | None, typer.Option(help="Keep a centred field of voxels: 96 or 96,112,96.")] = None,
    plan: Annotated[
        list[str] | None, typer.Option("--set", help="Change a plan setting: intensity=window. Repeatable.")
    ] = None,
    workers: WorkersOption = 2,
    scheduler: SchedulerOption = None,
    seed: Annotated[int, typer.Option(help="Seed of the split, where the source has none.")] = 0,
    label_findings: Annotated[
        str | None,
        typer.Option("--label-findings", help="Mine labels from reports by rules: brain, liver or chest."),
    ] = None,
    look: Annotated[
        bool, typer.Option("--look/--no-look", help="Also search copies across subjects, and write quality.html.")
    ] = True,
) -> None:
    """Raw studies into a curated store: read strictly, reject with reasons, split by subject, write atomically."""
    from tomoglot.serve.quality import write_quality
    from tomoglot.store.writer import write_store

    chosen = _plan(spacing_mm, field, plan, plan_of)
    _check_room(out, chosen, here=scheduler is None)
    findings = _findings_of(label_findings)
    sources = _mined(_read(source, out, SourceOptions.of(context)), findings)
    with progress_bar(f"ingesting {len(sources.studies)} studies") as report:
        done = write_store(
            sources,
            out.absolute(),
            chosen,
            workers=workers,
            scheduler=scheduler,
            seed=seed,
            look=look,
            progress=report,
        )
    _tell(done, source, out)
    if look:
        print(f"open {write_quality(out)}")
    print(f"next: tomoglot inspect {out}")


def _findings_of(organ: str | None) -> tuple[str, ...]:
    """The findings whose labels are to be mined from reports; none where no organ is named."""
    from tomoglot.studies.findings import LISTS

    if organ is not None and organ not in LISTS:
        raise ValueError(f"--label-findings {organ}: known are {', '.join(LISTS)}")
    return () if organ is None else LISTS[organ]


def _check_room(out: Path, plan: Plan, *, here: bool) -> None:
    """Refuse before headers are read, which may take an hour: a folder that is taken, a field too large."""
    from tomoglot.store.conform import check_memory
    from tomoglot.store.layout import check_free

    check_free(out.absolute())
    if here:
        # The least there may be: headers tell how much more it is.
        check_memory(plan, sequences=1, workers=1)


def _mined(sources: Sources, findings: tuple[str, ...]) -> Sources:
    """With labels that rules read from the reports, where they are asked for."""
    from tomoglot.studies.findings import mine_labels

    if not findings:
        return sources
    labelled = mine_labels(sources, findings)
    count = sum(bool(study.labels_mined) for study in labelled.studies)
    print(f"labels of {count} of {len(labelled.studies)} studies mined from reports by rules: no reader gave them")
    return labelled


def _tell(done: IngestSummary, source: Path, out: Path) -> None:
    """What was stored, and loudly where the split leaks."""
    others = {"from before": done.skipped, "from another source": done.stored - done.accepted}
    said = ", ".join(f"{count} {where}" for where, count in others.items() if count)
    print(
        f"{done.accepted - done.skipped} studies written, {done.stored} in the store{f' ({said})' if said else ''}; "
        f"{done.rejected} rejections (rejected.parquet)"
    )
    if done.accepted == 0:
        raise ValueError(f"no study of {source.name} was accepted; {out.name}/rejected.parquet says why")
    if done.cut is not None:
        print(f"WARNING: {done.cut}", file=sys.stderr)
    if done.num_leaks:
        print(
            f"WARNING: {done.num_leaks} of {done.num_duplicates} pairs of copies stand on two sides of the split: "
            "scores on it are too good; see duplicates.parquet",
            file=sys.stderr,
        )
    if done.num_unlooked:
        print(f"{done.num_unlooked} studies of earlier runs were not compared; ingest them again", file=sys.stderr)


@app.command()
def curate(
    context: typer.Context,
    source: SourceArgument,
    out: OutOption,
    reports: ReportsOption = None,
    layout: LayoutOption = None,
    columns: ColumnOption = None,
    report_columns: ReportColumnOption = None,
    report_encoding: EncodingOption = None,
    key: OwnKeyOption = None,
    resample_tilt: TiltOption = False,
    subject_from_study: NoPatientOption = False,
    workers: WorkersOption = 2,
    scheduler: SchedulerOption = None,
) -> None:
    """Only the checks: tables of what is accepted and rejected, duplicates, and a page to look at; no store."""
    from tomoglot.serve.quality import curate_cohort

    sources = _read(source, out, SourceOptions.of(context))
    with progress_bar(f"checking {len(sources.studies)} studies") as report:
        done, page = curate_cohort(
            sources, out.absolute(), workers=max(1, workers), scheduler=scheduler, progress=report
        )
    print(f"{done.num_accepted} studies accepted ({done.num_kept} from before), {done.num_rejected} rejections")
    print(f"{done.num_duplicates} pairs of copies across subjects, {done.num_leaks} across splits; tables in {out}")
    print(f"open {page}")


@app.command()
def inspect(store: Path, png: Annotated[Path | None, typer.Option(help="Draw it in this .png file.")] = None) -> None:
    """What a store holds: subjects, sequences, spacing, what is missing, reports, labels."""
    from rich.console import Console

    from tomoglot.serve.terminal import describe
    from tomoglot.store.inspect import draw, summarise
    from tomoglot.store.reader import Store

    if png is not None and png.is_dir():
        raise ValueError(f"{png.name} is a folder; --png wants the name of a file, such as {png.name}/store.png")
    if png is not None and png.suffix.lower() != ".png":
        raise ValueError(f"--png {png.name}: the picture is written as PNG; give a name that ends with .png")
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
