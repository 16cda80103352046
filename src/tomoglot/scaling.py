"""`tomoglot bench scaling`: what more training subjects and a wider encoder bring, as a law with intervals.

A cell is one pre-training: a share of the training subjects (those of a smaller share lie within those of a larger
one), a width of the encoder, a seed. Every cell takes the same number of steps, unless epochs are asked for, and is
measured on the same held-out studies: by the recipe's own loss, with what is hidden drawn alike, and by a task's error.

    scaling.json     every cell, the fitted laws, and what may be said of them    table.csv   the cells
    scaling.png      the cells and the laws                                       bench.json  the settings
    cells/<cell>/    run/ is the pre-training, cell.json its measures: a cell that has one is not run again
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from pydantic import Field, model_validator

from tomoglot.checkpoint import RESEARCH_USE, load_checkpoint
from tomoglot.config import Settings
from tomoglot.encoders.vision import VisionEncoder
from tomoglot.encoders.width import scale_width
from tomoglot.recipes.recipe import Recipe
from tomoglot.run import RunConfig, part_of, pretrain
from tomoglot.serve.scaling_figure import draw_scaling
from tomoglot.store.catalogue import StudyRow
from tomoglot.store.reader import Store
from tomoglot.studies.atomic import write_bytes
from tomoglot.tasks.scores.held_out import (
    LOSS,
    Cell,
    drawn_errors,
    drawn_losses,
    held_out_groups,
    held_out_loss,
    names_of,
    table_of,
    title_of,
)
from tomoglot.tasks.scores.intervals import DRAWS, percentile_interval
from tomoglot.tasks.scores.power_law import LEAST_SIZES, Estimate, PowerLaw, Reals, fit_power_law, refuse_sizes
from tomoglot.tasks.task import load, save_result
from tomoglot.training import Step

Progress = Callable[[int, int], None]


class ScalingConfig(Settings):
    """A grid of pre-trainings.

    Attributes:
        run: the settings of each; its recipe's `vision` is what widths multiply.
        fractions: shares of the training subjects.
        widths: what the encoder's widths are multiplied by.
        seeds: one training each; subjects that are kept differ from seed to seed too.
        split: where cells are measured.
        task: also score this task, its error being 1 - macro AUROC.
        epochs: so many passes over each cell's own studies, in place of the run's steps.
        group: held-out subjects that are given to the loss together; None makes about 20 groups, none with more than
            the run's batch size. A contrastive loss depends on it.
        draws: of the bootstrap.
    """

    run: RunConfig
    fractions: tuple[float, ...] = Field((0.1, 0.3, 1.0), min_length=1)
    widths: tuple[float, ...] = Field((0.5, 1.0, 2.0), min_length=1)
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    split: str = "test"
    task: str | None = None
    epochs: float | None = Field(None, gt=0)
    group: int | None = Field(None, ge=1)
    draws: int = Field(DRAWS, ge=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.run.split is None or self.split in (self.run.split, "all"):
            raise ValueError(f"split {self.split!r} is trained on; measure on one that is held out, such as 'test'")
        if self.run.schedule.devices != 1:
            raise ValueError(f"schedule.devices is {self.run.schedule.devices}: cells are trained on one device each")
        if min(self.widths) <= 0 or not all(0 < fraction <= 1 for fraction in self.fractions):
            raise ValueError(f"fractions {self.fractions} lie in (0, 1], and widths {self.widths} above 0")
        if any(len(set(grid)) < len(grid) for grid in (self.fractions, self.widths, self.seeds)):
            raise ValueError("a fraction, a width or a seed is given twice")
        return self


class ScalingResult(Settings):
    """All that a bench found; `refused` says, by measure, why no law was fitted."""

    recipe: str
    simulated: bool
    store_digest: str
    split_digest: str
    split: str
    held_out_subjects: int
    groups: tuple[int, ...]
    cells: tuple[Cell, ...]
    laws: tuple[PowerLaw, ...]
    refused: dict[str, str]
    notes: tuple[str, ...]
    use: str = RESEARCH_USE

    def lines(self) -> list[str]:
        """What a person reads first: the exponents, and how far they may be believed."""
        kind = "SIMULATED data: " if self.simulated else ""
        said = []
        for law in self.laws:
            beta = "" if law.beta is None else f", of encoder parameters {law.beta}"
            said += [
                f"{kind}held-out {law.measure}: exponent of training subjects {law.alpha}{beta}; "
                f"R2 {law.r_squared:.2f} over {law.cells} cells",
                law.verdict,
            ]
        said += [f"{kind}no law of held-out {name}: {why}" for name, why in self.refused.items()]
        return [*said, *self.notes]


def run_scaling(
    config: ScalingConfig, store_path: Path, out: Path, *, progress: Progress | None = None
) -> ScalingResult:
    """Train and measure every cell that is not done yet, fit the laws and write everything into `out`.

    Stopped at any moment, it goes on from there; a grid may grow in the same folder. `progress` counts steps.

    Raises:
        ValueError: the grid keeps fewer than three different numbers of subjects, two widths make one encoder, the
            recipe's encoder cannot be scaled, too few subjects are held out, or `out` holds something else.
        Interrupted: SIGTERM or SIGINT came; a checkpoint was written.
    """
    store = Store.open(store_path)
    if config.task is not None:
        load(config.task)
    jobs = plan_cells(config, store)
    loader = config.run.loader
    groups = held_out_groups(
        store, config.split, sequences=loader.sequences, group=config.group, most=loader.batch_size
    )
    _claim(out, config, store)
    cells: list[Cell] = []
    folders: list[Path] = []
    done, total = 0, sum(job.schedule.steps for _, job in jobs)
    for width, job in jobs:
        folder = out / "cells" / f"fraction_{job.subject_fraction:g}-width_{width:g}-seed_{job.seed}"
        if not (folder / "cell.json").is_file():
            heard = None if progress is None else _after(done, total, progress)
            _measure_cell(config, width, job, folder, store=store, groups=groups, progress=heard)
        cells.append(Cell.load(folder / "cell.json"))
        folders.append(folder)
        done += job.schedule.steps
        if progress is not None:
            progress(done, total)
    laws, refused = _fit(config, store, groups, cells, folders)
    result = ScalingResult(
        recipe=type(config.run.recipe).__qualname__.partition(".")[0],
        simulated=any(row.simulated for row in store.select(config.split) + store.select(config.run.split)),
        store_digest=store.digest,
        split_digest=store.split_digest,
        split=config.split,
        held_out_subjects=len({row.subject for rows in groups for row in rows}),
        groups=tuple(len({row.subject for row in rows}) for rows in groups),
        cells=tuple(cells),
        laws=tuple(laws),
        refused=refused,
        notes=_notes(config, cells, len(groups)),
    )
    write_bytes(out / "table.csv", table_of(cells).encode())
    draw_scaling(cells, laws, out / "scaling.png", simulated=result.simulated)
    write_bytes(out / "scaling.json", result.to_json().encode())
    return result


def plan_cells(config: ScalingConfig, store: Store) -> list[tuple[float, RunConfig]]:
    """Width and pre-training settings of every cell; refused before anything is trained.

    Raises:
        ValueError: too few different numbers of subjects, two widths that make one encoder, or one that none can scale.
    """
    scaled = {width: scale_width(_vision(config.run), width) for width in config.widths}
    if len({vision.to_json() for vision in scaled.values()}) < len(scaled):
        raise ValueError(f"two of the widths {config.widths} round to one encoder; give widths that lie further apart")
    jobs: list[tuple[float, RunConfig]] = []
    sizes: set[int] = set()
    for seed in config.seeds:
        for fraction in sorted(config.fractions):
            for width in config.widths:
                job = config.run.but(
                    **{"recipe.vision": scaled[width], "loader.seed": config.run.loader.seed + seed},
                    subject_fraction=fraction,
                    seed=seed,
                    keep_last=1,
                )
                rows = part_of(store, job).select(job.split)
                sizes.add(len({row.subject for row in rows}))
                if config.epochs is not None:
                    batch = job.loader.batch_size * job.schedule.batches_per_step
                    job = job.but(**{"schedule.steps": max(1, round(config.epochs * len(rows) / batch))})
                jobs.append((width, job))
    if len(sizes) < LEAST_SIZES:
        raise ValueError(refuse_sizes(len(sizes)))
    return jobs


def _vision(run: RunConfig) -> VisionEncoder.Config:
    vision = getattr(run.recipe, "vision", None)
    if not isinstance(vision, VisionEncoder.Config):
        raise ValueError("the recipe has no setting `vision`, so there is no encoder whose width could be multiplied")
    return vision


def _measure_cell(
    config: ScalingConfig,
    width: float,
    job: RunConfig,
    folder: Path,
    *,
    store: Store,
    groups: Sequence[Sequence[StudyRow]],
    progress: Callable[[Step, int], None] | None,
) -> None:
    """Measure the untrained recipe, train it, measure it again, and write `cell.json`."""
    rows = part_of(store, job).select(job.split)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed)
        recipe = job.recipe.build(job.loader.sequences or store.sequences)
    weights = {id(p): p.numel() for m in recipe.modules() if isinstance(m, VisionEncoder) for p in m.parameters()}
    # Before it is trained: what cannot be measured is said now, and not after hours.
    before, _, _ = _measure(config, recipe, store, groups, job=job, folder=None)
    pretrain(job, store.path, folder / "run", progress=progress)
    trained = load_checkpoint(folder / "run").recipe
    after, losses, terms = _measure(config, trained, store, groups, job=job, folder=folder)
    log = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [json.loads(line) for line in log]
    cell = Cell(
        fraction=job.subject_fraction,
        width=width,
        seed=job.seed,
        subjects=len({row.subject for row in rows}),
        studies=len(rows),
        parameters=sum(weights.values()),
        steps=len(steps),
        epochs=round(sum(step["samples"] for step in steps) / len(rows), 2),
        seconds=round(sum(step["seconds"] for step in steps), 1),
        measures=after,
        untrained={name: measure.value for name, measure in before.items()},
        terms=terms,
        groups=tuple(losses.tolist()),
    )
    write_bytes(folder / "cell.json", cell.to_json().encode())


def _measure(
    config: ScalingConfig,
    recipe: Recipe,
    store: Store,
    groups: Sequence[Sequence[StudyRow]],
    *,
    job: RunConfig,
    folder: Path | None,
) -> tuple[dict[str, Estimate], Reals, dict[str, float]]:
    """Loss and task error with their intervals over subjects; what the task predicts is kept in `folder`."""
    losses, terms = held_out_loss(recipe, store, groups, job)
    sizes = np.array([len(rows) for rows in groups], dtype=np.float64)
    bounds = percentile_interval(float(np.average(losses, weights=sizes)), drawn_losses(losses, sizes, config.draws))
    measures = {LOSS: Estimate(value=bounds.value, low=bounds.low, high=bounds.high)}
    if config.task is not None:
        task = load(config.task)
        settings = task.Config().but(split=config.split, controls=False)
        if "loader" in task.Config.model_fields:
            settings = settings.but(loader=job.loader)
        result = task.score(recipe, store, settings)
        score = result.headline()
        if score.metric != "auroc":
            raise ValueError(f"task {config.task} is scored by {score.metric}; a scaling law takes 1 - AUROC")
        measures[config.task] = Estimate(value=1 - score.value, low=1 - score.high, high=1 - score.low)
        if folder is not None:
            save_result(result, folder / "task.json")
    return measures, losses, terms


def _after(done: int, total: int, progress: Progress) -> Callable[[Step, int], None]:
    return lambda step, _: progress(done + step.number, total)


def _claim(out: Path, config: ScalingConfig, store: Store) -> None:
    """Take the folder for these settings and this store, whatever the grid; refuse one that was begun with others."""
    asked = {**json.loads(config.to_json()), "store_digest": store.digest}
    asked = {name: value for name, value in asked.items() if name not in {"fractions", "widths", "seeds", "draws"}}
    text = json.dumps(asked, indent=2, sort_keys=True) + "\n"
    recorded = out / "bench.json"
    if recorded.exists():
        if recorded.read_text(encoding="utf-8") != text:
            raise ValueError(f"{out.name} holds a bench of other settings or another store; give another --out")
        return
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out.name} is not empty and holds no bench; give another --out")
    write_bytes(recorded, text.encode())


def _fit(
    config: ScalingConfig,
    store: Store,
    groups: Sequence[Sequence[StudyRow]],
    cells: Sequence[Cell],
    folders: Sequence[Path],
) -> tuple[list[PowerLaw], dict[str, str]]:
    """A law for each measure, or why there is none."""
    sizes = np.array([len(rows) for rows in groups], dtype=np.float64)
    laws, refused = [], {}
    for name in names_of(cells):
        # Every cell meets the same draws of the held-out subjects: what they share moves no exponent.
        if name == LOSS:
            drawn = [drawn_losses(np.array(cell.groups), sizes, config.draws) for cell in cells]
        else:
            drawn = [drawn_errors(folder / "task.json", store, config.draws) for folder in folders]
        try:
            law = fit_power_law(
                np.array([cell.measures[name].value for cell in cells]),
                np.array([cell.subjects for cell in cells]),
                np.array([cell.parameters for cell in cells]),
                measure=title_of(name),
                drawn=np.stack(drawn, axis=1),
                draws=config.draws,
            )
        except ValueError as error:
            refused[title_of(name)] = str(error)
        else:
            laws.append(law)
    return laws, refused


def _notes(config: ScalingConfig, cells: Sequence[Cell], groups: int) -> tuple[str, ...]:
    """What the numbers leave out."""
    if config.epochs is None:
        often = [cell.epochs for cell in cells]
        first = (
            f"Every cell took the same {cells[0].steps} steps: the amount of training is fixed and the data vary, so "
            f"studies of the smallest share were read {max(often):.3g} times and of the largest {min(often):.3g} times."
        )
    else:
        first = f"Every cell took {config.epochs:g} epochs: fewer subjects also mean fewer steps."
    notes = [
        first,
        f"Intervals hold which held-out subjects were drawn ({groups} groups for the loss) and how far cells lie off "
        "the line; shares of one seed are nested, and count as if they were not.",
    ]
    worse = sum(cell.measures[LOSS].value >= cell.untrained[LOSS] for cell in cells)
    if worse:
        notes.append(f"{worse} of {len(cells)} cells end with a held-out loss no better than before their first step.")
    repeated = sum(cell.studies < config.run.loader.batch_size for cell in cells)
    if repeated:
        notes.append(
            f"{repeated} of {len(cells)} cells have fewer studies than a batch holds, which then repeats some."
        )
    return tuple(notes)
