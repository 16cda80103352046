"""What an MPMA step costs as more of the volume is hidden: the encoder reads visible patches alone, so it must fall.

    python benchmarks/visible_tokens.py --preset tiny --crop 80 64 64 --batch 8 --rounds 5

The shares are measured in turn (A B C A B C ...), so that they meet the same neighbours; the first round is not
counted. CPU seconds of this process, medians, and the operations that torch counts (attention's are not among them).
Made-up volumes and one made-up report a study; `encode` is the vision encoder forward and backward, `step` the whole
of `losses`, backward and AdamW. With nothing hidden there is nothing to rebuild: that step has no decoder.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from tomoglot.batches.batch import Batch
from tomoglot.batches.mask import block_mask
from tomoglot.recipes import mpma
from tomoglot.recipes.mpma import MPMA

SHARES = (0.0, 0.25, 0.5, 0.75, 0.9)
REPORT = (
    "FINDINGS: There is a {} enhancing mass in the left frontal lobe with surrounding oedema. No infarct is seen. The "
    "ventricles are of normal size.\nIMPRESSION: Mass of the left frontal lobe."
)


def studies(count: int, crop: tuple[int, int, int]) -> Batch:
    """Noise of one sequence, and reports that differ in a word."""
    torch.manual_seed(0)
    return Batch(
        volumes=torch.randn(count, 1, *crop),
        acquired=torch.ones(count, 1, dtype=torch.bool),
        sequences=("t1w",),
        affine=torch.eye(4).expand(count, 4, 4).contiguous(),
        studies=tuple(f"study{row}" for row in range(count)),
        subjects=torch.arange(count),
        reports=tuple(REPORT.format(f"{row + 2} mm") for row in range(count)),
        labels=torch.zeros(count, 1),
        labelled=torch.zeros(count, 1, dtype=torch.bool),
        findings=("mass",),
    )


def settings(preset: str, share: float) -> MPMA.Config:
    """A preset that hides this share of patches; with nothing hidden there is nothing to rebuild."""
    config: MPMA.Config = getattr(mpma, preset)()
    return config.but(patch_share=share, image_weight=float(share > 0))


def cpu_seconds(work: Callable[[], object]) -> float:
    """Of this process, all threads."""
    started = time.process_time()
    work()
    return time.process_time() - started


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--preset", default="tiny", choices=sorted(mpma.PRESETS))
    parser.add_argument("--crop", type=int, nargs=3, default=(80, 64, 64))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    i, j, k = given.crop
    batch = studies(given.batch, (i, j, k))
    torch.set_num_threads(1)
    modules = {share: settings(given.preset, share).build(("t1w",)).train() for share in SHARES}
    optimisers = {share: torch.optim.AdamW(module.parameters()) for share, module in modules.items()}
    drawn = {share: module.draw(batch) for share, module in modules.items()}

    def encode(share: float) -> None:
        vision, volumes = modules[share].vision, drawn[share].volumes
        if share > 0:
            blocks = block_mask((i, j, k), vision.patch, share, torch.default_generator, batch=len(volumes))
            vision.encode_visible(volumes, ~blocks.flatten(1)).square().sum().backward()
        else:
            vision(volumes).tokens.square().sum().backward()
        optimisers[share].zero_grad()

    def step(share: float) -> None:
        torch.stack(list(modules[share].losses(batch, progress=0.0).values())).sum().backward()
        optimisers[share].step()
        optimisers[share].zero_grad()

    times: dict[tuple[str, float], list[float]] = {}
    for turn in range(given.rounds + 1):
        for share in SHARES:
            for name, work in (("encode", encode), ("step", step)):
                seconds = cpu_seconds(lambda work=work, share=share: work(share))  # type: ignore[misc]
                if turn:
                    times.setdefault((name, share), []).append(seconds)
    flops = {}
    for share in SHARES:
        with FlopCounterMode(display=False) as counter:
            step(share)
        flops[share] = counter.get_total_flops()
    print("| hidden | encode, CPU s | of whole | step, CPU s | of whole | step, operations of whole |")
    print("|---|---|---|---|---|---|")
    for share in SHARES:
        row = [f"{share:g}"]
        for name in ("encode", "step"):
            mine, whole = (statistics.median(times[name, one]) for one in (share, 0.0))
            row += [f"{mine:.3f}", f"{mine / whole:.2f}"]
        print("| " + " | ".join([*row, f"{flops[share] / flops[0.0]:.2f}"]) + " |", flush=True)


if __name__ == "__main__":
    main()
