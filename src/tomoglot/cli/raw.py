"""Verbs for data that identify persons: fetch studies from a PACS, take identity out of files."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Annotated

import typer

from tomoglot.cli.options import KeyOption, OutOption, WorkersOption, app
from tomoglot.serve.progress import progress_bar

DayOption = Annotated[dt.datetime | None, typer.Option(formats=["%Y-%m-%d"])]


@app.command()
def pull(
    origin: Annotated[str, typer.Argument(help="The DICOMweb root, https://pacs.example/dicom-web.")],
    out: OutOption,
    key: KeyOption,
    modality: Annotated[str | None, typer.Option(help="Studies that hold it: MR, CT.")] = None,
    since: DayOption = None,
    until: DayOption = None,
    studies: Annotated[Path | None, typer.Option(help="A file of StudyInstanceUIDs, one a line.")] = None,
    accessions: Annotated[Path | None, typer.Option(help="A file of accession numbers, one a line.")] = None,
    credentials: Annotated[
        Path | None, typer.Option(help="A JSON file of mode 600. Else TOMOGLOT_PACS_USER and _PASSWORD, or _TOKEN.")
    ] = None,
    ca_file: Annotated[Path | None, typer.Option(help="Certificates to trust, PEM.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=16, help="Studies at a time.")] = 4,
) -> None:
    """Studies from a PACS over DICOMweb; stopped and given again, it goes on. The files identify persons."""
    from tomoglot.studies.dicomweb import Wanted, read_credentials, read_identifiers
    from tomoglot.studies.dicomweb import pull as pull_studies
    from tomoglot.studies.pseudonym import Pseudonyms

    wanted = Wanted(
        modality=modality,
        since=None if since is None else since.date(),
        until=None if until is None else until.date(),
        study_uids=() if studies is None else read_identifiers(studies),
        accessions=() if accessions is None else read_identifiers(accessions),
    )
    with progress_bar("pulling studies") as report:
        done = pull_studies(
            origin,
            out,
            wanted=wanted,
            pseudonyms=Pseudonyms.from_file(key),
            credentials=read_credentials(credentials),
            ca_file=ca_file,
            concurrency=concurrency,
            progress=report,
        )
    print(
        f"{done.complete} studies complete, {done.incomplete} not; {done.instances} instances, "
        f"{done.bytes / 1e6:.1f} MB fetched; {len(done.failed)} failures (journal/failed.jsonl)"
    )
    if done.incomplete or done.failed:
        print("the same command tries again whatever is not complete")
        raise SystemExit(1)
    print(f"next: tomoglot ingest {out / 'complete'} --key {key} --out STORE")


@app.command()
def deidentify(
    source: Annotated[Path, typer.Argument(help="A folder or a zip file of DICOM, NIfTI and .txt reports.")],
    out: OutOption,
    key: KeyOption,
    retain: Annotated[
        list[str] | None,
        typer.Option(help="An option of PS3.15: uids, device, institution, characteristics, full-dates, ..."),
    ] = None,
    drop_dates: Annotated[bool, typer.Option("--drop-dates", help="Remove dates instead of moving them.")] = False,
    look_at_pixels: Annotated[bool, typer.Option(help="Also look for burnt-in text in the pixels.")] = True,
    subject_from_study: Annotated[
        bool, typer.Option("--subject-from-study", help="A study without a Patient ID is of another person each.")
    ] = False,
    deface: Annotated[
        bool, typer.Option("--deface", help="NIfTI heads, T1-weighted: also cut the face off (extra `deface`).")
    ] = False,
    mapping: Annotated[
        Path | None, typer.Option(help="Also write what the pseudonyms stand for, in a file only you can read.")
    ] = None,
    workers: WorkersOption = 2,
) -> None:
    """DICOM, NIfTI and reports without identity (PS3.15 basic profile); what may show a person is refused."""
    from tomoglot.studies.deidentify.folder import deidentify_folder
    from tomoglot.studies.deidentify.profile import Options

    options = Options.retaining(
        retain or [],
        dates="removed" if drop_dates else "shifted",
        look_at_pixels=look_at_pixels,
        subject_from_study=subject_from_study,
        deface=deface,
    )
    with progress_bar("taking identity out") as report:
        done = deidentify_folder(
            source, out, key=key, options=options, mapping=mapping, workers=max(1, workers), progress=report
        )
    print(f"{done.written} files written, {done.skipped} were there, {len(done.rejected)} refused (rejected.parquet)")
    if done.written + done.skipped == 0:
        raise ValueError(f"nothing of {source.name} was written; {out.name}/rejected.parquet says why")
    faces = "a cut through the face leaves parts of it" if deface else "faces are not removed"
    print(f"not anonymous: {faces}, and burnt-in text and names in free text may have been missed")
