"""Verbs that train and score: pre-train, take in released weights, evaluate, transfer, compare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tomoglot.cli.options import (
    ControlsOption,
    FromOption,
    OutOption,
    ResultOption,
    SetOption,
    SplitOption,
    StoreOption,
    app,
)
from tomoglot.serve.progress import progress_bar

if TYPE_CHECKING:
    from tomoglot.store.reader import Store


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
    task: Annotated[str, typer.Argument(help="Any task, for example segmentation or zero_shot.")],
    store: StoreOption,
    runs: Annotated[
        list[str],
        typer.Option(
            "--run",
            help="NAME=RUN_FOLDER, a NAME twice for two pre-trainings; all are tested against the first. Names such as "
            "mae@500, mae@1000 are drawn as a line.",
        ),
    ],
    out: OutOption,
    fractions: Annotated[list[float] | None, typer.Option("--label-fraction", help="Repeatable.")] = None,
    seeds: Annotated[list[int] | None, typer.Option("--seed", help="One training each. Repeatable.")] = None,
    measure: Annotated[
        str | None, typer.Option(help="With commas; arms are tested on the first: dice,nsd or 'report to volume/r@10'.")
    ] = None,
    against: Annotated[str | None, typer.Option(help="Test every arm against this one, say 'from scratch'.")] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(help="NAME:SETTING=VALUE[;...]: the first run once more, so changed. Repeatable."),
    ] = None,
    changes: SetOption = None,
) -> None:
    """One task on several runs and from scratch, trained at several shares of the labels, and tested in pairs.

    Every training is kept in OUT/trainings: interrupted, or with one more arm, it trains only what is missing.
    """
    from rich.console import Console

    from tomoglot.checkpoint import load_checkpoint
    from tomoglot.serve.compared_figure import draw_compared
    from tomoglot.tasks.compare import compare_pretraining, named_folders, varied_settings
    from tomoglot.tasks.scoreboard import table
    from tomoglot.tasks.task import load

    folders = named_folders(runs)
    config = load(task).Config().set(changes or [])
    opened = _opened(store, config)
    models = {name: [load_checkpoint(path) for path in its] for name, its in folders.items()}
    with progress_bar("training") as report:
        result = compare_pretraining(
            models,
            opened,
            task,
            config,
            fractions=fractions or [1.0],
            seeds=seeds or [0],
            measures=[name.strip() for name in measure.split(",")] if measure else (),
            variants=varied_settings(config, vary or []),
            kept=out / "trainings",
            against=against,
            progress=report,
        )
    Console().print(table(result, metrics={score.metric for score in result.scores}))
    saved = result.save(out)
    print(f"written to {saved}, drawn in {draw_compared(result, saved.with_suffix('.png'))}")


def _opened(store: Path, config: Any) -> Store:
    """The store, if it has the split that a task's settings name."""
    from tomoglot.store.reader import Store
    from tomoglot.tasks.task import side_of

    opened = Store.open(store)
    opened.select(side_of(config.split))
    return opened


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
    from tomoglot.tasks.scoreboard import table

    # What a task predicts is written only where a folder was named, and never over that of other settings.
    written = None if out is None else out / "-".join(filter(None, (task, variant_of(config))))
    opened, loaded = _opened(store, config), load_checkpoint(run)
    with progress_bar(task) as report:
        result = found.score(loaded, opened, config, out=written, progress=report)
    Console().print(table(result := result.under(config)))
    # Scores on other data than the run's own have a folder of their own, and are not drawn on the run's page.
    own = loaded.card.store_digest in ("", opened.digest)
    folder = run / "results" if own else run / "results" / f"store-{opened.digest[:12]}"
    print(f"written to {result.save(out or folder)}")
