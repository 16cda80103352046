"""Pre-training as a run: a folder that records everything, can be stopped at any moment, and goes on exactly.

    config.json        every setting          environment.json   commit, versions, machine (no names of people or hosts)
    data.json          digests of the data    metrics.jsonl      one line a step
    checkpoints/       see checkpoint.py      events.out.tfevents.*   the same numbers for TensorBoard

At its end a run also holds what its recipe wants to be looked at (`Recipe.artefacts`), such as templates.

SIGTERM and SIGINT write a checkpoint after the step under way; the process then exits with 143 or 130.
"""

from __future__ import annotations

import importlib
import json
import random
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from pydantic import Field, SerializeAsAny

import tomoglot
from tomoglot.batches.batch import Batch
from tomoglot.batches.loader import Loader, LoaderConfig
from tomoglot.checkpoint import Card, Resume, latest, read_resume, save_checkpoint, subject_digests
from tomoglot.config import Settings
from tomoglot.objectives.similarity import effective_rank
from tomoglot.recipes.recipe import Recipe
from tomoglot.record import MetricsLog, open_folder
from tomoglot.released import account_of, read_encoder, start_from, write_account
from tomoglot.store.reader import Store
from tomoglot.studies.split import keep_subjects
from tomoglot.training import Schedule, Step, TrainState, train

if TYPE_CHECKING:
    from lightning_fabric import Fabric

START_FILE = "encoder_weights.json"


class Interrupted(SystemExit):
    """A signal stopped the run after a checkpoint; uncaught, the process exits with 128 + its number."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__(128 + number)


class RunConfig(Settings):
    """Everything that decides a run, apart from the store.

    `subject_fraction` is the share of the split's subjects that are trained on, drawn by `seed`; a smaller share's lie
    within those of a larger one.
    `threads` sets the number of CPU threads of torch (None leaves it); `keep_last` the checkpoints kept (None: all).
    `encoder_weights` is a run folder or a released file whose encoder the run starts from; what fitted is written to
    `encoder_weights.json`. With `encoder_frozen` it stays as it started, and the rest learns beside it.
    """

    recipe: SerializeAsAny[Recipe.Config]
    loader: LoaderConfig = LoaderConfig()
    schedule: Schedule = Schedule()
    split: str | None = "train"
    subject_fraction: float = Field(1.0, gt=0, le=1)
    seed: int = Field(0, ge=0)
    save_every_steps: int = Field(500, ge=1)
    log_every_steps: int = Field(50, ge=1)
    keep_last: int | None = Field(2, ge=1)
    threads: int | None = Field(None, ge=1)
    encoder_weights: str | None = None
    encoder_frozen: bool = False

    @classmethod
    def named(cls, name: str) -> Self:
        """Settings for a recipe's preset (``medmap:tiny``), with the run values that the recipe's file gives for it.

        Raises:
            ValueError: no such recipe or preset.
        """
        config = cls(recipe=Recipe.Config.named(name))
        file, _, preset = name.partition(":")
        meant_for = importlib.import_module(f"tomoglot.recipes.{file}").PRESETS
        return config.but(**meant_for[preset or "tiny"]) if isinstance(meant_for, Mapping) else config


def pretrain(
    config: RunConfig,
    store_path: Path,
    out: Path,
    *,
    resume: bool = True,
    progress: Callable[[Step, int], None] | None = None,
) -> Path:
    """Train a recipe on a store and record the run in `out`; returns the folder of the last checkpoint.

    With `resume` an unfinished run in `out` goes on from its latest checkpoint, bit for bit as if it had never been
    stopped (on a CPU); a finished one is returned as it is. `progress` gets each step and the number of steps.

    Raises:
        ValueError: `out` holds something else, or a run with other settings or other data.
        FloatingPointError: a loss or a gradient is not finite; the weights were not updated.
        Interrupted: SIGTERM or SIGINT came; a checkpoint was written.
    """
    store = part_of(Store.open(store_path), config)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    fabric = config.schedule.fabric()
    fabric.launch()
    sequences = config.loader.sequences or store.sequences
    recipe = _build_seeded(config, sequences, fabric)
    found = latest(out)
    # Before anything is written: weights or studies that do not fit leave no folder behind.
    origin = _start(config, recipe, out, fresh=found is None)
    if config.encoder_frozen:
        recipe.lock_encoders()
    loader = _loader(store, config, fabric, tokenizer=getattr(recipe, "tokenizer", None))
    if fabric.is_global_zero:
        open_folder(out, config, _describe_data(store, config), fabric, resume=resume)
        if origin is not None:
            write_account(out / START_FILE, origin)
    fabric.barrier()
    state = TrainState.fresh(recipe, config.schedule)
    if found is not None:
        _restore(found, recipe, state, loader, fabric)
    card = _card(store, config, sequences).but(origin=origin["origin"] if origin else "")
    with MetricsLog(out, state.step, write=fabric.is_global_zero) as log, _signals() as stopped:
        steps = train(recipe, loader, config.schedule, fabric=fabric, state=state)
        for step in steps:
            last = step.number == config.schedule.steps
            rank = None
            if step.number % config.log_every_steps == 0 or last:
                rank = _effective_rank(recipe, step.batch, fabric)
            log.add(step, effective_rank=rank)
            if progress is not None and fabric.is_global_zero:
                progress(step, config.schedule.steps)
            stop = _anywhere(fabric, bool(stopped))
            if last or stop or step.number % config.save_every_steps == 0:
                now = card.but(step=step.number)
                found = _save(out, recipe, now, state, loader, fabric=fabric, keep_last=config.keep_last)
            if stop and not last:
                steps.close()
                raise Interrupted(*stopped[:1])
    assert found is not None
    return found


def part_of(store: Store, config: RunConfig) -> Store:
    """The studies that a run trains on, as a store: all of it, or the rows of the subjects that it keeps.

    Raises:
        ValueError: no study is in the split.
    """
    if config.subject_fraction == 1:
        return store
    rows = store.select(config.split)
    kept = keep_subjects(np.array([row.subject for row in rows]), fraction=config.subject_fraction, seed=config.seed)
    return store.only(row for row, its in zip(rows, kept, strict=True) if its)


def _build_seeded(config: RunConfig, sequences: tuple[str, ...], fabric: Fabric) -> Recipe:
    """Equal weights on every device, then random numbers of each device's own."""
    random.seed(config.seed)
    np.random.seed(config.seed)  # noqa: NPY002 - a library that draws from the global generator is made repeatable too
    torch.manual_seed(config.seed)
    recipe = config.recipe.build(sequences).to(fabric.device)
    torch.manual_seed(config.seed + fabric.global_rank)
    return recipe


def _start(config: RunConfig, recipe: Recipe, out: Path, *, fresh: bool) -> dict[str, Any] | None:
    """Copy the weights that the run starts from, or read what was copied when it began; None where there are none."""
    if config.encoder_weights is None:
        return None
    if not fresh:
        return dict(json.loads((out / START_FILE).read_text(encoding="utf-8")))
    weights = read_encoder(Path(config.encoder_weights))
    return account_of(weights, start_from(recipe, weights))


def _loader(store: Store, config: RunConfig, fabric: Fabric, *, tokenizer: Any) -> Loader:
    rank, world = fabric.global_rank, fabric.world_size
    return Loader(store, config.loader, split=config.split, train=True, rank=rank, world=world, tokenizer=tokenizer)


def _save(
    out: Path,
    recipe: Recipe,
    card: Card,
    state: TrainState,
    loader: Loader,
    *,
    fabric: Fabric,
    keep_last: int | None,
) -> Path:
    mine = _random_state()
    ranks = [mine]
    if fabric.world_size > 1:
        ranks = [{} for _ in range(fabric.world_size)]
        torch.distributed.all_gather_object(ranks, mine)
    small = {"step": state.step, "position": loader.position, "random": ranks}
    if fabric.is_global_zero:
        if card.step == card.steps:
            # Before the last checkpoint, so that a run which has one has these as well.
            recipe.artefacts(out, simulated=card.simulated)
        resume = Resume(weights={}, average=state.average, optimiser=state.optimiser.state_dict(), state=small)
        save_checkpoint(out, recipe, card, resume=resume, keep_last=keep_last)
    fabric.barrier()
    found = latest(out)
    assert found is not None
    return found


def _restore(found: Path, recipe: Recipe, state: TrainState, loader: Loader, fabric: Fabric) -> None:
    saved = read_resume(found, fabric.device)
    if len(saved.state["random"]) != fabric.world_size:
        raise ValueError(
            f"the run was on {len(saved.state['random'])} devices and this is {fabric.world_size}: it could not go on "
            "exactly; use as many, or start a new run"
        )
    recipe.load_state_dict(dict(saved.weights), strict=True)
    state.optimiser.load_state_dict(saved.optimiser)
    state.average = None if saved.average is None else {name: saved.average[name] for name in state.average or {}}
    state.step = saved.state["step"]
    loader.seek(saved.state["position"])
    _set_random_state(saved.state["random"][fabric.global_rank])


def _random_state() -> dict[str, Any]:
    version, words, gauss = random.getstate()
    numpy_state: Any = np.random.get_state(legacy=False)  # noqa: NPY002 - the global generator, see `pretrain`
    numpy_state["state"]["key"] = numpy_state["state"]["key"].tolist()
    return {
        "python": [version, list(words), gauss],
        "numpy": numpy_state,
        "torch": bytes(torch.get_rng_state().tolist()).hex(),
        "cuda": bytes(torch.cuda.get_rng_state().tolist()).hex() if torch.cuda.is_available() else None,
    }


def _set_random_state(saved: dict[str, Any]) -> None:
    version, words, gauss = saved["python"]
    random.setstate((version, tuple(words), gauss))
    key = np.array(saved["numpy"]["state"]["key"], dtype=np.uint32)
    np.random.set_state({**saved["numpy"], "state": {**saved["numpy"]["state"], "key": key}})  # noqa: NPY002
    torch.set_rng_state(torch.tensor(list(bytes.fromhex(saved["torch"])), dtype=torch.uint8))
    if saved["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.tensor(list(bytes.fromhex(saved["cuda"])), dtype=torch.uint8))


def _effective_rank(recipe: Recipe, batch: Batch, fabric: Fabric) -> float | None:
    """Of the sequence embeddings of a batch: near 1 means that the encoder has collapsed."""
    training = recipe.training
    recipe.eval()
    # Forked, so that how often we look never changes what is trained.
    devices = [fabric.device] if fabric.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad(), fabric.autocast():
        embeddings = recipe.encode(batch)[batch.acquired]
    recipe.train(training)
    usable = len(embeddings) > 0 and bool(embeddings.isfinite().all())
    return effective_rank(embeddings).item() if usable else None


def _card(store: Store, config: RunConfig, sequences: tuple[str, ...]) -> Card:
    rows = store.select(config.split)
    return Card(
        tomoglot=tomoglot.__version__,
        recipe=config.recipe,
        plan=store.plan,
        crop_voxels=config.loader.crop_voxels,
        sequences=sequences,
        store_digest=store.digest,
        split_digest=store.split_digest,
        step=0,
        steps=config.schedule.steps,
        simulated=any(row.simulated for row in rows),
        # The store's digest is the salt: two runs on one store write equal cards. A random one, beside the digests in
        # the same card, would hide nothing more.
        salt=store.digest,
        subjects=subject_digests((row.subject for row in rows), store.digest),
    )


def _describe_data(store: Store, config: RunConfig) -> dict[str, Any]:
    rows = store.select(config.split)
    return {
        "store_digest": store.digest,
        "split_digest": store.split_digest,
        "split": config.split,
        "studies": len(rows),
        "subjects": len({row.subject for row in rows}),
        "sequences": list(config.loader.sequences or store.sequences),
        "simulated": any(row.simulated for row in rows),
        # Left out of a whole run's, so that one begun by an earlier version goes on.
        **({} if config.subject_fraction == 1 else {"subject_fraction": config.subject_fraction}),
    }


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT; a second one of the same kind acts as it did before."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def catch(number: int, _frame: object) -> None:
        caught.append(number)
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, catch)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _anywhere(fabric: Fabric, here: bool) -> bool:
    """Whether it holds on any device, so that all stop at the same step."""
    if fabric.world_size == 1:
        return here
    flag = torch.tensor(float(here), device=fabric.device)
    return bool(fabric.all_reduce(flag, reduce_op="max").item())
