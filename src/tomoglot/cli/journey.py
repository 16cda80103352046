"""Verbs around a run: the whole journey on simulated studies, the page of a run, the state of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tomoglot.cli.options import (
    OutOption,
    app,
)
from tomoglot.serve.progress import progress_bar


@app.command()
def demo(
    out: OutOption = Path("runs/demo"),
    subjects: Annotated[int | None, typer.Option(min=40, help="Simulated subjects.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the cohort and of the training.")] = 0,
) -> None:
    """The whole journey on simulated studies: about ten minutes on two cores."""
    from tomoglot.demo import DemoConfig, run_demo

    config = DemoConfig(seed=seed) if subjects is None else DemoConfig(seed=seed, subjects=subjects)
    run_demo(out, config, say=lambda line: print(line, flush=True), progress=progress_bar)


@app.command()
def report(run: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """Write the run's page again from what the run folder holds: curves, scores, what was rejected."""
    from tomoglot.serve.report import report_run

    print(f"open {report_run(run)}")


@app.command()
def doctor(store: Annotated[Path | None, typer.Option(help="Also open this store.")] = None) -> None:
    """Versions, devices and known traps, with what to do; exit code 1 if something is bad."""
    from tomoglot.doctor import examine

    findings = examine(store)
    for finding in findings:
        print(f"{finding.state:<5} {finding.what:<22} {finding.says}")
        if finding.do:
            print(f"      {'':<22} -> {finding.do}")
    if any(finding.state == "bad" for finding in findings):
        raise SystemExit(1)
