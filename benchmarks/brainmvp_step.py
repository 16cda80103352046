"""One BrainMVP training step of ours, beside the same step configured as the published code is, in turn.

    python benchmarks/brainmvp_step.py --crop 48 --rounds 3

Each variant lives in a process of its own, which makes one step when it is told to (A B C A B C ...), so that they meet
the same neighbours and their peak memory is their own. One study of four sequences, one target, so two masked views;
UniFormer-S, eight templates of 240 x 240 x 155 (71 million values). The step is one of training.py's loop: forward,
backward, optimiser, templates. The first step of each is not counted. Quote CPU ratios.

`published` is our code in the published configuration: float32, anomaly mode on, min-max scaled templates as dense
parameters of AdamW that all get a gradient each step, attention without fusion, boolean-mask filling. `fp32`: templates
updated where the crops are, none of the rest. `bf16`: with bf16 autocast. `bf16-cl`: and channels-last weights.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from itertools import repeat
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from tomoglot.batches.batch import Batch
from tomoglot.encoders.template import TemplateBank
from tomoglot.recipes import brainmvp
from tomoglot.recipes.brainmvp import BrainMVP, Targets, View
from tomoglot.schedule import Schedule
from tomoglot.training import TrainState, train

SEQUENCES = ("adc", "dwi", "flair", "pd", "t1c", "t1w", "t2s", "t2w")
HAD = (False, False, True, False, True, True, False, True)
VARIANTS = ("published", "fp32", "bf16", "bf16-cl")


def resident_mb() -> float:
    """Memory of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def naive_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Scores of all pairs in memory."""
    return (query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(dim=-1) @ value


def hide_by_index(self: BrainMVP, targets: Targets, filler: Tensor) -> View:
    """As `_hide`, but each hidden voxel is looked up and assigned."""
    view = brainmvp_hide(self, targets, torch.zeros_like(targets.volumes))
    filled = targets.volumes.clone()
    filled[view.hidden] = filler[view.hidden].to(filled.dtype)
    return View(filled=filled, hidden=view.hidden)


brainmvp_hide = BrainMVP._hide


class DenseAdamW(torch.optim.AdamW):
    """AdamW to which the templates are one parameter: those not read get a gradient of zeros and are updated too."""

    templates: tuple[Tensor, ...] = ()

    def step(self, closure: object = None) -> object:
        """Update everything."""
        for one in self.templates:
            one.grad = torch.zeros_like(one) if one.grad is None else one.grad
        return super().step(closure)


def study(crop: int) -> Batch:
    """One made-up study in the middle of the template grid."""
    torch.manual_seed(0)
    acquired = torch.tensor([HAD])
    affine = torch.eye(4)[None]
    affine[0, :3, 3] = torch.tensor([-200.0, 60.0, 20.0])
    return Batch(
        volumes=torch.rand(1, 8, crop, crop, crop) * acquired[:, :, None, None, None],
        acquired=acquired,
        sequences=SEQUENCES,
        affine=affine,
        studies=("synthetic",),
        subjects=torch.zeros(1, dtype=torch.int64),
        reports=(None,),
        labels=torch.zeros(1, 1),
        labelled=torch.zeros(1, 1, dtype=torch.bool),
        findings=("mass",),
    )


def work(variant: str, crop: int) -> None:
    """Make a step for each line that comes in; say what it took."""
    published = variant == "published"
    update = {"templates.scaling": "minmax"} if published else {"templates.update": "covered"}
    config = brainmvp.paper().but(sequences_per_study=1, contrast_from=1.0, **update)
    precision = "bf16-mixed" if variant.startswith("bf16") else "32-true"
    schedule = Schedule(steps=10_000, warmup_steps=0, clip_norm=None, precision=precision, accelerator="cpu")
    base = resident_mb()
    model = config.build(SEQUENCES)
    if variant == "bf16-cl":
        model.vision.to(memory_format=torch.channels_last_3d)
    batch = study(crop)
    state = TrainState.fresh(model, schedule)
    assert model.bank is not None
    if published:
        torch.autograd.set_detect_anomaly(True, check_nan=True)
        torch.nn.functional.scaled_dot_product_attention = naive_attention
        BrainMVP._hide = hide_by_index
        state.optimiser = DenseAdamW(model.parameters(), lr=3e-4)
        state.optimiser.templates = tuple(model.bank.values.values())
    else:
        # The state of all eight templates, as after some steps: otherwise the memory would be that of one.
        names = list(SEQUENCES)
        read = model.bank.read(names, batch.affine.expand(len(names), 4, 4), (16, 16, 16))
        read.sum().backward()
        state.optimiser.step()
        state.optimiser.zero_grad()
    steps = train(model, repeat(batch), schedule, fabric=schedule.fabric(), state=state)
    for _ in sys.stdin:
        began, cpu = time.perf_counter(), time.process_time()
        next(steps)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3 - base
        took = {"s": time.perf_counter() - began, "cpu": time.process_time() - cpu, "mb": peak}
        print(json.dumps(took), flush=True)


def update_alone(rounds: int = 5) -> dict[str, float]:
    """Median CPU seconds of the templates' update: AdamW on all of them, and ours on one and on two crops of 96^3."""
    spent: dict[str, list[float]] = {"dense": [], "one": [], "two": []}
    grid = brainmvp.paper().templates
    dense = TemplateBank(grid, SEQUENCES)
    theirs = torch.optim.AdamW(dense.parameters(), lr=3e-4)
    bank = TemplateBank(grid.but(update="covered"), SEQUENCES)
    ours = TrainState.fresh(torch.nn.ModuleList([bank, torch.nn.Linear(2, 1)]), Schedule()).optimiser
    for parameter in dense.parameters():
        parameter.grad = torch.randn_like(parameter)
    for number in range(rounds + 1):
        affine = study(8).affine.repeat(2, 1, 1)
        affine[:, :3, 3] += torch.tensor([[7.0 * number, 5.0 * number, 0.0], [40.0, -50.0, 3.0 * number]])
        for name, crops, optimiser in (("dense", 0, theirs), ("one", 1, ours), ("two", 2, ours)):
            if crops:
                read = bank.read(["flair", "t1w"][:crops], affine[:crops], (96, 96, 96))
                F.mse_loss(read, torch.randn_like(read)).backward()
            cpu = time.process_time()
            optimiser.step()
            spent[name].append(time.process_time() - cpu)
            ours.zero_grad()
    return {name: statistics.median(values[1:]) for name, values in spent.items()}


def main() -> None:
    """Start a process a variant, let them step in turn, print the table."""
    asked = argparse.ArgumentParser()
    asked.add_argument("--crop", type=int, default=48)
    asked.add_argument("--rounds", type=int, default=3)
    asked.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    asked.add_argument("--work", choices=VARIANTS)
    options = asked.parse_args()
    torch.set_num_threads(1)
    if options.work:
        work(options.work, options.crop)
        return
    told: dict[str, list[dict[str, float]]] = {name: [] for name in options.variants}
    command = [sys.executable, __file__, "--crop", str(options.crop), "--work"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    workers = {name: subprocess.Popen([*command, name], **pipes) for name in told}  # type: ignore[call-overload]
    for _ in range(options.rounds + 1):
        for name, worker in workers.items():
            worker.stdin.write("step\n")
            worker.stdin.flush()
            told[name].append(json.loads(worker.stdout.readline()))
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    print(f"crop {options.crop}^3, {options.rounds} steps each, medians")
    print(f"{'variant':<12}{'s':>8}{'CPU s':>8}{'x':>7}{'peak MB':>9}{'share':>7}")
    rows = {
        name: {key: statistics.median(s[key] for s in steps[1:]) for key in steps[0]} for name, steps in told.items()
    }
    first = rows[options.variants[0]]
    for name, row in rows.items():
        ratio, share = first["cpu"] / row["cpu"], row["mb"] / first["mb"]
        print(f"{name:<12}{row['s']:>8.1f}{row['cpu']:>8.2f}{ratio:>7.2f}{row['mb']:>9.0f}{share:>7.2f}")
    alone = update_alone()
    for name in ("one", "two"):
        print(
            f"templates' update, CPU ms: AdamW on all {1e3 * alone['dense']:.0f}, covered by {name} crop(s) of 96^3 "
            f"{1e3 * alone[name]:.1f}, {alone['dense'] / alone[name]:.0f} x"
        )


if __name__ == "__main__":
    main()
