"""The bench of scaling: a grid of tiny pre-trainings, stopped anywhere, ends in the numbers of one that was not."""

import csv
import json
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tomoglot import cli, scaling
from tomoglot.batches.batch import Batch
from tomoglot.batches.loader import LoaderConfig
from tomoglot.checkpoint import load_checkpoint
from tomoglot.config import Settings
from tomoglot.encoders.plain_conv import PlainConv
from tomoglot.recipes.recipe import Recipe
from tomoglot.run import Interrupted, RunConfig, part_of, pretrain
from tomoglot.scaling import ScalingConfig, plan_cells, run_scaling
from tomoglot.schedule import Schedule
from tomoglot.serve.scaling_figure import scaling_figure
from tomoglot.store.plan import Plan
from tomoglot.store.reader import Store
from tomoglot.store.writer import write_store
from tomoglot.studies.nifti import write_nifti
from tomoglot.studies.source import Sources
from tomoglot.studies.study import Series, Study, Volume
from tomoglot.tasks.scores import held_out
from tomoglot.tasks.scores.held_out import Cell, held_out_groups, held_out_loss
from tomoglot.tasks.scores.intervals import interval, macro_auroc
from tomoglot.tasks.task import Prediction, Score, TaskResult, load_result, save_result

STEPS = 3
SUBJECTS = {"train": 10, "test": 7}


def write_simulated(folder: Path) -> Path:
    """Blobs: seventeen simulated subjects, every third one with two studies."""
    rng = np.random.default_rng(0)
    studies = []
    for split, count in SUBJECTS.items():
        for number in range(count):
            for visit in range(1 + (number % 3 == 0)):
                path = folder / "files" / f"{split}{number}-{visit}.nii.gz"
                path.parent.mkdir(parents=True, exist_ok=True)
                voxels = rng.integers(1, 900, (8, 8, 8)).astype(np.int16)
                write_nifti(path, Volume(voxels=voxels, affine=np.eye(4)))
                studies.append(
                    Study(
                        subject=f"{split}-{number}",
                        study=f"ses-{visit}",
                        series=(Series(sequence="t1w", path=path),),
                        split=split,
                        simulated=True,
                    )
                )
    write_store(Sources(studies=studies, rejected=[]), folder / "store", Plan())
    return folder / "store"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_simulated(tmp_path_factory.mktemp("simulated"))


def settings(**changes: object) -> ScalingConfig:
    """2 widths x 3 shares of the subjects."""
    recipe = Recipe.Config.named("brainmvp:mae").but(
        vision=PlainConv.Config(widths=(8, 8), blocks=(0, 0), groups=4), block_voxels=4, hidden_share=0.5
    )
    run = RunConfig(
        recipe=recipe,
        loader=LoaderConfig(batch_size=2, crop_voxels=(8, 8, 8), workers=0),
        schedule=Schedule(steps=STEPS, warmup_steps=1, learning_rate=1e-2, accelerator="cpu"),
        save_every_steps=1,
        log_every_steps=100,
    )
    return ScalingConfig(run=run, fractions=(0.2, 0.5, 1.0), widths=(1.0, 2.0), draws=200).but(**changes)


@pytest.fixture(scope="module")
def finished(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bench") / "whole"
    run_scaling(settings(), store, out)
    return out


def numbers(out: Path) -> dict[str, object]:
    """All that was found, but not how long it took."""
    found = json.loads((out / "scaling.json").read_text())
    for cell in found["cells"]:
        del cell["seconds"]
    return found


def test_every_cell_is_a_run_on_its_share_of_the_subjects(finished: Path, store: Path) -> None:
    found = scaling.ScalingResult.load(finished / "scaling.json")
    assert [(cell.fraction, cell.width, cell.subjects) for cell in found.cells] == [
        (fraction, width, count) for fraction, count in ((0.2, 2), (0.5, 5), (1.0, 10)) for width in (1.0, 2.0)
    ]
    assert {cell.steps for cell in found.cells} == {STEPS}
    assert found.simulated and found.recipe == "BrainMVP" and found.held_out_subjects == 7
    opened, seen = Store.open(store), []
    for cell in found.cells[::2]:
        run = finished / "cells" / f"fraction_{cell.fraction:g}-width_1-seed_0" / "run"
        card, data = load_checkpoint(run).card, json.loads((run / "data.json").read_text())
        seen.append({row.subject for row in opened.rows if card.saw(row.subject)})
        assert len(seen[-1]) == data["subjects"] == cell.subjects
        assert data.get("subject_fraction", 1.0) == cell.fraction
        assert not any(name.startswith("test") for name in seen[-1])
    assert seen[0] < seen[1] < seen[2]
    wide = found.cells[1].parameters / found.cells[0].parameters
    assert 2 < wide < 4.5


def test_a_cell_knows_the_loss_before_the_first_step_and_the_size_of_its_encoder_alone(
    finished: Path, store: Path
) -> None:
    opened = Store.open(store)
    cell, (_, job) = (
        Cell.load(next(finished.glob("cells/fraction_1-width_2-*/cell.json"))),
        plan_cells(settings(), opened)[-1],
    )
    torch.manual_seed(job.seed)
    drawn = job.recipe.build(opened.sequences)
    groups = held_out_groups(opened, "test", most=job.loader.batch_size)
    losses, _ = held_out_loss(drawn, opened, groups, job)
    before = np.average(losses, weights=[len(rows) for rows in groups])
    assert cell.untrained["loss"] == pytest.approx(before) and cell.measures["loss"].value != pytest.approx(before)
    encoder = sum(weight.numel() for weight in drawn.vision.parameters())
    assert cell.parameters == encoder < sum(weight.numel() for weight in drawn.parameters())


def test_another_seed_also_draws_other_studies(store: Path) -> None:
    jobs = [job for _, job in plan_cells(settings(seeds=(0, 3)), Store.open(store))]
    assert {(job.seed, job.loader.seed) for job in jobs} == {(0, 0), (3, 3)}


def test_the_law_is_fitted_drawn_and_written(finished: Path) -> None:
    found = scaling.ScalingResult.load(finished / "scaling.json")
    (law,) = found.laws
    assert law.measure == "loss" and law.cells == 6 and law.sizes == (2, 5, 10) and law.beta is not None
    assert law.alpha.low <= law.alpha.value <= law.alpha.high
    with (finished / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss_value"]) for row in rows] == pytest.approx(
        [cell.measures["loss"].value for cell in found.cells], rel=1e-5
    )
    assert (finished / "scaling.png").read_bytes().startswith(b"\x89PNG")
    figure = scaling_figure(found.cells, found.laws, simulated=True)
    left, right = figure.axes
    assert (left.get_xlabel(), right.get_xlabel()) == ("training subjects", "parameters of the encoder")
    # Points, and the fitted line, of each of two encoders and of three numbers of subjects.
    assert [len(axes.lines) for axes in (left, right)] == [4, 6]
    assert "SIMULATED" in figure.get_supxlabel() and "SIMULATED" in found.lines()[0]
    assert "SIMULATED" not in scaling_figure(found.cells, found.laws, simulated=False).get_supxlabel()
    without = scaling_figure(found.cells, [], simulated=True).axes
    assert [len(axes.lines) for axes in without] == [2, 3] and without[0].get_title(loc="left") == "no exponent"


def test_a_bench_that_is_done_trains_nothing_again(
    finished: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling, "pretrain", lambda *_, **__: pytest.fail("a cell that was done was trained again"))
    heard: list[tuple[int, int]] = []
    run_scaling(settings(), store, finished, progress=lambda *both: heard.append(both))
    assert heard == [(STEPS * cell, STEPS * 6) for cell in range(1, 7)]


def test_stopped_in_the_middle_of_a_cell_it_goes_on_to_the_same_numbers(
    finished: Path, store: Path, tmp_path: Path
) -> None:
    stopped_at = STEPS + 2

    def stop(done: int, _total: int) -> None:
        if done == stopped_at:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted):
        run_scaling(settings(), store, tmp_path / "stopped", progress=stop)
    done = sorted(path.parent.name for path in (tmp_path / "stopped").glob("cells/*/cell.json"))
    assert done == ["fraction_0.2-width_1-seed_0"]
    first = (tmp_path / "stopped" / "cells" / done[0] / "cell.json").read_bytes()
    half = tmp_path / "stopped" / "cells" / "fraction_0.2-width_2-seed_0" / "run" / "checkpoints"
    assert [path.name for path in half.iterdir()] == ["00000002"]
    run_scaling(settings(), store, tmp_path / "stopped")
    assert numbers(tmp_path / "stopped") == numbers(finished)
    assert (tmp_path / "stopped" / "cells" / done[0] / "cell.json").read_bytes() == first


def test_as_good_as_killed_between_checkpoints_it_goes_on_to_the_same_numbers(
    finished: Path, store: Path, tmp_path: Path
) -> None:
    """An error between two checkpoints leaves what SIGKILL does: the last checkpoint, and lines after it."""

    def die(done: int, _total: int) -> None:
        if done == 2 * STEPS + 2:
            raise RuntimeError("as good as killed")

    seldom = settings(**{"run.save_every_steps": 100})
    with pytest.raises(RuntimeError):
        run_scaling(seldom, store, tmp_path / "out", progress=die)
    assert len(list((tmp_path / "out").glob("cells/*/cell.json"))) == 2
    lines = tmp_path / "out" / "cells" / "fraction_0.5-width_1-seed_0" / "run" / "metrics.jsonl"
    assert len(lines.read_text().splitlines()) == 2
    run_scaling(seldom, store, tmp_path / "out")
    assert numbers(tmp_path / "out") == numbers(finished)


def test_a_grid_may_grow_in_its_folder_and_other_settings_may_not(finished: Path, store: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.glob("cells/*/cell.json")}
    found = run_scaling(settings(seeds=(0, 1), widths=(1.0,)), store, finished)
    assert len(found.cells) == 6 and {path: path.stat().st_mtime_ns for path in before} == before
    kept = [
        {row.subject for row in part_of(Store.open(store), job).select("train")}
        for _, job in plan_cells(settings(seeds=(0, 1)), Store.open(store))
        if job.subject_fraction == 0.5
    ]
    assert kept[0] == kept[1] != kept[2] == kept[3]
    with pytest.raises(ValueError, match="other settings or another store"):
        run_scaling(settings(**{"run.schedule.learning_rate": 0.5}), store, finished)
    run_scaling(settings(), store, finished)


def test_a_folder_that_holds_something_else_is_left_alone(store: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="holds no bench"):
        run_scaling(settings(), store, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_what_cannot_make_a_law_is_refused_before_anything_is_trained(store: Path, tmp_path: Path) -> None:
    for wrong, says in (
        ({"fractions": (0.5, 1.0)}, "2 distinct numbers of training subjects"),
        ({"fractions": (0.19, 0.2, 0.21, 1.0)}, "2 distinct numbers of training subjects"),
        ({"widths": (1.0, 1.1)}, "round to one encoder"),
        ({"group": 4}, "7 subjects: too few for two groups of 4"),
        ({"split": "val"}, "split 'val'"),
        ({"task": "zero_shoot"}, "zero_shot"),
    ):
        with pytest.raises(ValueError, match=says):
            run_scaling(settings(**wrong), store, tmp_path / "out")
    for wrong, says in (
        ({"split": "train"}, "is trained on"),
        ({"split": "all"}, "'all' is trained on"),
        ({"run.schedule.devices": 2}, "one device"),
        ({"widths": (1.0, 1.0)}, "twice"),
        ({"fractions": (0.0, 0.5, 1.0)}, "above 0"),
    ):
        with pytest.raises(ValueError, match=says):
            settings(**wrong)
    assert not (tmp_path / "out").exists()


def test_the_error_of_a_task_has_a_law_of_its_own_over_drawn_subjects(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that guesses, for each model as it was drawn: what counts is what becomes of its predictions."""
    told: list[Settings] = []

    class Config(Settings):
        split: str = "val"
        controls: bool = True
        loader: LoaderConfig | None = None

    def score(recipe: Recipe, opened: Store, config: Config) -> TaskResult:
        told.append(config)
        rng = np.random.default_rng(int(1e6 * next(recipe.parameters()).abs().sum().item()))
        rows = opened.select(config.split)
        labels, given = np.arange(len(rows)) % 2, rng.random(len(rows)).round(3)
        bounds = interval(macro_auroc(given[:, None], labels[:, None]), np.array([row.subject for row in rows]))
        value = Score(name="macro", value=bounds.value, low=bounds.low, high=bounds.high, subjects=7, prevalence=0.5)
        predictions = tuple(
            Prediction(study=row.key, probabilities={"mass": float(p)}, labels={"mass": float(truth)})
            for row, p, truth in zip(rows, given, labels, strict=True)
        )
        return TaskResult(task="guess", split="test", subjects=7, studies=10, scores=(value,), predictions=predictions)

    monkeypatch.setattr(scaling, "load", lambda name: SimpleNamespace(Config=Config, score=score))
    found = run_scaling(settings(task="guess", widths=(1.0,)), store, tmp_path / "out")
    assert [law.measure for law in found.laws] + list(found.refused) == ["loss", "guess error"]
    assert {(config.split, config.controls, config.loader) for config in told} == {  # type: ignore[attr-defined]
        ("test", False, job.loader) for _, job in plan_cells(settings(), Store.open(store))
    }
    assert len(told) == 6 and all("guess" in cell.untrained for cell in found.cells)
    for path, cell in zip(sorted((tmp_path / "out").glob("cells/*/task.json")), found.cells, strict=True):
        drawn = held_out.drawn_errors(path, Store.open(store), 2000)
        bounds, error = np.nanquantile(drawn, [0.025, 0.975]), cell.measures["guess"]
        assert (error.low, error.high) == pytest.approx(tuple(bounds))
        assert load_result(path).headline().value == pytest.approx(1 - error.value)
    assert "guess_value" in (tmp_path / "out" / "table.csv").read_text().splitlines()[0]
    assert len(scaling_figure(found.cells, found.laws, simulated=True).axes) == 4


def test_epochs_give_fewer_subjects_fewer_steps(store: Path) -> None:
    jobs = plan_cells(settings(epochs=4.0, widths=(1.0,)), Store.open(store))
    studies = [len(part_of(Store.open(store), job).select("train")) for _, job in jobs]
    assert [job.schedule.steps for _, job in jobs] == [round(4 * count / 2) for count in studies]


def test_a_share_of_the_subjects_in_a_run_is_recorded_and_may_not_change(store: Path, tmp_path: Path) -> None:
    job = plan_cells(settings(), Store.open(store))[0][1]
    pretrain(job, store, tmp_path / "run")
    with pytest.raises(ValueError, match=r"subject_fraction was 0\.2, now 0\.5"):
        pretrain(job.but(subject_fraction=0.5), store, tmp_path / "run")
    whole = Store.open(store)
    part = part_of(whole, job)
    assert part.digest == whole.digest and part.sequences == whole.sequences and len(part.rows) < len(whole.rows)
    assert part_of(whole, job.but(subject_fraction=1.0)) is whole


def test_held_out_groups_share_no_subject_and_leave_none_out(store: Path) -> None:
    groups = held_out_groups(Store.open(store), "test")
    people = [{row.subject for row in rows} for rows in groups]
    assert sorted(map(len, people)) == [2, 2, 3] and len(set.union(*people)) == 7
    assert sum(map(len, groups)) == len(Store.open(store).select("test"))
    assert [len({row.subject for row in rows}) for rows in held_out_groups(Store.open(store), "test", group=1)] == [
        1
    ] * 7


def test_the_held_out_loss_is_that_of_the_recipe_with_one_hiding_for_all(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, run = Store.open(store), settings().run
    recipe = run.recipe.build(opened.sequences).train()
    groups = held_out_groups(opened, "test")
    before = torch.get_rng_state()
    asked, given = [], recipe.losses

    def heard(batch: Batch, *, progress: float) -> dict[str, torch.Tensor]:
        asked.append((recipe.training, progress))
        return given(batch, progress=progress)

    monkeypatch.setattr(recipe, "losses", heard)
    losses, terms = held_out_loss(recipe, opened, groups, run)
    assert asked == [(False, 1.0)] * len(groups), "as at the end of a run, in evaluation mode"
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(7)
    assert held_out_loss(recipe, opened, groups, run)[0].tolist() == losses.tolist()
    slow = []
    for number, rows in enumerate(groups):
        loader = held_out.Loader(opened.only(rows), run.loader.but(batch_size=99), split=None, train=False)
        torch.manual_seed(number)
        with torch.no_grad():
            slow.append(
                {name: term.item() for name, term in recipe.eval().losses(next(iter(loader)), progress=1.0).items()}
            )
    assert losses.tolist() == pytest.approx([sum(one.values()) for one in slow])
    weights = [len(rows) for rows in groups]
    assert terms == pytest.approx({name: np.average([one[name] for one in slow], weights=weights) for name in slow[0]})
    assert sum(terms.values()) == pytest.approx(np.average(losses, weights=weights))


def test_draws_of_groups_are_means_over_their_studies() -> None:
    losses, sizes = np.array([1.0, 2.0, 4.0]), np.array([1.0, 1.0, 2.0])
    drawn = held_out.drawn_losses(losses, sizes, 400)
    times = held_out.draw_subjects(np.arange(3), draws=400)
    slow = [np.repeat(losses, (row * sizes).astype(int)).mean() for row in times]
    assert drawn.tolist() == pytest.approx(slow)


def test_what_is_not_known_of_a_study_is_no_error(store: Path, tmp_path: Path) -> None:
    rows = Store.open(store).select("test")
    predictions = tuple(
        Prediction(
            study=row.key,
            probabilities={"infarct": at / 10, "mass": at / 10},
            # A mass is known of the first six: of them, the last three have one.
            labels={"infarct": float(at >= 5)} | ({"mass": float(at >= 3)} if at < 6 else {}),
        )
        for at, row in enumerate(rows)
    )
    saved = TaskResult(task="guess", split="test", subjects=7, studies=10, predictions=predictions)
    drawn = held_out.drawn_errors(save_result(saved, tmp_path / "task.json"), Store.open(store), 200)
    assert np.isfinite(drawn).sum() > 100 and np.nanmax(np.abs(drawn)) < 1e-9


def test_a_recipe_without_an_encoder_setting_is_refused() -> None:
    class Bare(Recipe.Config):
        pass

    with pytest.raises(ValueError, match="no setting `vision`"):
        scaling._vision(settings().run.but(recipe=Bare()))


def test_notes_say_what_the_numbers_leave_out(finished: Path) -> None:
    cells = scaling.ScalingResult.load(finished / "scaling.json").cells
    notes = " ".join(scaling._notes(settings(**{"run.loader.batch_size": 4}), cells, 3))
    assert "the same 3 steps" in notes and "3 groups" in notes
    assert "2 of 6 cells have fewer studies than a batch holds" in notes
    worse = [cell.but(untrained={"loss": 0.0}) for cell in cells[:2]] + list(cells[2:])
    better = [cell.but(untrained={"loss": 1e9}) for cell in cells]
    assert "2 of 6 cells end with a held-out loss no better" in " ".join(
        scaling._notes(settings(), worse[:2] + better[2:], 3)
    )
    assert "no better" not in " ".join(scaling._notes(settings(), better, 3))
    assert "4 epochs" in scaling._notes(settings(epochs=4.0), cells, 3)[0]


def test_the_command_reads_lists_and_says_what_was_found(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[ScalingConfig] = []

    def found(config: ScalingConfig, path: Path, out: Path, *, progress: object) -> object:
        asked.append(config)
        return type("Found", (), {"lines": lambda self: ["SIMULATED data: exponent"]})()

    monkeypatch.setattr(scaling, "run_scaling", found)
    arguments = ["bench", "scaling", "brainmvp:mae", "--store", str(store), "--out", str(tmp_path), "--seeds", "0,3"]
    arguments += ["--fractions", "0.25,0.5,1", "--widths", "1,2", "--set", "schedule.steps=5", "--group", "3"]
    monkeypatch.setattr(sys, "argv", ["tomoglot", *arguments])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code in (0, None)
    (config,) = asked
    assert (config.fractions, config.widths, config.seeds) == ((0.25, 0.5, 1.0), (1.0, 2.0), (0, 3))
    assert config.run.schedule.steps == 5 and config.group == 3 and config.split == "test"
    assert "SIMULATED data: exponent" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["tomoglot", "bench", "scaling", "brainmvp:mae", "--widths", "1;2"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2 and "--widths wants numbers" in capsys.readouterr().err
