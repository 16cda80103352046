"""The command line: one verb a stage, each a thin call of one public function.

Rooms are imported inside the verbs, so that `tomoglot --help` answers without loading torch. What a user gave wrong is
one line on standard error and exit code 2; Ctrl-C leaves with 130 and SIGTERM, while training, with 143.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tomoglot.serve.progress import progress_bar

if TYPE_CHECKING:
    from tomoglot.store.plan import Plan

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Pre-training on 3D medical images and the reports written about them. Research use only.",
)

StoreOption = Annotated[Path, typer.Option("--store", help="A store written by `tomoglot ingest`.")]
OutOption = Annotated[Path, typer.Option("--out", help="Where to write.")]
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
    typer.Option("--out", help="Folder of the result and of predicted files (default: the run's results/, no files)."),
]
WorkersOption = Annotated[int, typer.Option("--workers", min=0, help="Worker processes (threads while training).")]


def main() -> None:
    """Run the command line; turn what a user gave wrong into one line and exit code 2."""
    try:
        app()
    except (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError, FloatingPointError) as error:
        print(f"error: {_in_one_line(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        _say_interrupted()
        raise SystemExit(130) from None
    except SystemExit as left:
        # Ctrl-C, which Typer turns into this code without a word, and a training that was stopped by a signal.
        if left.code in (130, 143):
            _say_interrupted()
        raise


def _say_interrupted() -> None:
    print("interrupted; what was finished is kept, and the same command goes on from there", file=sys.stderr)


def _in_one_line(error: Exception) -> str:
    """A settings error lists every value that does not fit, each on lines of its own: put them in one."""
    wrong = getattr(error, "errors", None)
    if not callable(wrong):
        return " ".join(str(error).split("\n"))
    return "; ".join(f"{'.'.join(map(str, one['loc'])) or 'settings'}: {one['msg']}" for one in wrong())


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
    print(f"{done.accepted} studies accepted, {done.rejected} rejections; tables in {out}")


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


@app.command()
def pretrain(
    recipe: Annotated[str | None, typer.Argument(help="recipe:preset, for example medmap:tiny.")] = None,
    store: StoreOption = Path("store"),
    out: OutOption = Path("runs/pretrain"),
    changes: SetOption = None,
    config: Annotated[Path | None, typer.Option(help="A recorded config.json, to run exactly that again.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint of --out, when there is one.")] = True,
) -> None:
    """Pre-train by a recipe; the run folder records everything. Ctrl-C and SIGTERM: a checkpoint, then 130 or 143."""
    from tomoglot.run import RunConfig
    from tomoglot.run import pretrain as pretrain_run

    if (recipe is None) == (config is None):
        raise ValueError("name a recipe (medmap:tiny) or give --config, one of the two")
    settings = RunConfig.load(config) if config is not None else RunConfig.named(recipe or "")
    settings = settings.set(changes or [])
    with progress_bar("pre-training") as report:
        pretrain_run(settings, store, out, resume=resume, progress=lambda step, total: report(step.number, total))
    print(f"checkpoint in {out}; next: tomoglot transfer abnormality --from {out} --store {store}")


@app.command("import")
def import_weights(
    weights: Annotated[Path, typer.Argument(help="Released weights: a .pt or .safetensors file.")],
    store: StoreOption,
    out: OutOption,
    encoder: Annotated[str, typer.Option(help="The file's encoder.")] = "uniformer:small",
    recipe: Annotated[str, typer.Option(help="The recipe whose encoder it becomes.")] = "brainmvp:released",
    crop: Annotated[
        str | None, typer.Option(help="Voxels the encoder was trained on: 96. Default: whole fields.")
    ] = None,
) -> None:
    """Released encoder weights into a run folder that every task reads; says what fitted, refuses too little."""
    from tomoglot.config import three_numbers
    from tomoglot.released import import_released
    from tomoglot.store.reader import Store

    opened = Store.open(store)
    coverage = import_released(
        weights,
        out,
        sequences=opened.sequences,
        plan=opened.plan,
        encoder=encoder,
        recipe=recipe,
        crop_voxels=None if crop is None else three_numbers(crop, int),
    )
    print(coverage.describe())
    print(f"written to {out}; next: tomoglot transfer segmentation --from {out} --store {store}")


@app.command()
def evaluate(
    task: Annotated[str, typer.Argument(help="A task that trains nothing, for example zero_shot.")],
    run: FromOption,
    store: StoreOption,
    split: SplitOption = None,
    controls: ControlsOption = None,
    prompts: Annotated[Path | None, typer.Option(help="A JSON file of prompts by finding.")] = None,
    changes: SetOption = None,
    out: ResultOption = None,
) -> None:
    """Score a checkpoint without training anything: every score with its interval, beside its controls."""
    given = {"split": split, "controls": controls, "prompts": prompts}
    _score("evaluate", task, run=run, store=store, given=given, changes=changes, out=out)


@app.command()
def transfer(
    task: Annotated[str, typer.Argument(help="A task that trains on labels, for example abnormality.")],
    run: FromOption,
    store: StoreOption,
    mode: Annotated[str | None, typer.Option(help="How it learns: for abnormality, probe or finetune.")] = None,
    split: SplitOption = None,
    label_fraction: Annotated[
        float | None, typer.Option(help="Share of the training subjects whose labels are used, above 0, at most 1.")
    ] = None,
    controls: ControlsOption = None,
    changes: SetOption = None,
    out: ResultOption = None,
) -> None:
    """Train a task on what a checkpoint has learned and score it on held-out subjects, beside its controls."""
    given = {"mode": mode, "split": split, "label_fraction": label_fraction, "controls": controls}
    _score("transfer", task, run=run, store=store, given=given, changes=changes, out=out)


@app.command()
def compare(
    task: Annotated[str, typer.Argument(help="A task that trains on labels, for example segmentation.")],
    store: StoreOption,
    runs: Annotated[list[str], typer.Option("--run", help="NAME=RUN_FOLDER; all are compared with the first.")],
    out: OutOption,
    fractions: Annotated[list[float] | None, typer.Option("--label-fraction", help="Repeatable.")] = None,
    seeds: Annotated[list[int] | None, typer.Option("--seed", help="One training each. Repeatable.")] = None,
    measure: Annotated[str, typer.Option(help="What is compared of a segmentation: dice, lesion_f1, nsd.")] = "dice",
    changes: SetOption = None,
) -> None:
    """Train a task on several runs and from scratch, at several shares of the labels, and test them in pairs."""
    from rich.console import Console

    from tomoglot.checkpoint import load_checkpoint
    from tomoglot.store.reader import Store
    from tomoglot.tasks.compare import compare_pretraining
    from tomoglot.tasks.scoreboard import table
    from tomoglot.tasks.task import load

    pairs = [run.partition("=") for run in runs]
    if any(not (name and equals and path) for name, equals, path in pairs) or len({p[0] for p in pairs}) < len(pairs):
        raise ValueError(f"--run wants NAME=RUN_FOLDER with names that differ, got {', '.join(runs)}")
    config = load(task, verb="transfer").Config().set(changes or [])
    models = {name: load_checkpoint(Path(path)) for name, _, path in pairs}
    with progress_bar("training") as report:
        result = compare_pretraining(
            models,
            Store.open(store),
            task,
            config,
            fractions=fractions or [1.0],
            seeds=seeds or [0],
            measure=measure,
            progress=report,
        )
    Console().print(table(result))
    print(f"written to {result.under(config).save(out)}")


def _score(
    verb: str,
    task: str,
    *,
    run: Path,
    store: Path,
    given: dict[str, Any],
    changes: list[str] | None,
    out: Path | None,
) -> None:
    """Find a task by its file name, set its settings, score, print and save."""
    from tomoglot.tasks.task import load, variant_of

    found = load(task, verb=verb)
    config, known = found.Config(), found.Config.model_fields
    asked = {name: value for name, value in given.items() if value is not None}
    for name in asked:
        if name not in known:
            raise ValueError(f"{task} has no option --{name.replace('_', '-')}; its settings: {', '.join(known)}")
    config = config.but(**asked).set(changes or [])

    from rich.console import Console

    from tomoglot.checkpoint import load_checkpoint
    from tomoglot.store.reader import Store
    from tomoglot.tasks.scoreboard import table

    # What a task predicts is written only where a folder was named, and never over that of other settings.
    written = None if out is None else out / "-".join(filter(None, (task, variant_of(config))))
    loaded, opened = load_checkpoint(run), Store.open(store)
    with progress_bar(task) as report:
        result = found.score(loaded, opened, config, out=written, progress=report)
    Console().print(table(result := result.under(config)))
    # Scores on other data than the run's own have a folder of their own, and are not drawn on the run's page.
    own = loaded.card.store_digest in ("", opened.digest)
    folder = run / "results" if own else run / "results" / f"store-{opened.digest[:12]}"
    print(f"written to {result.save(out or folder)}")


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
