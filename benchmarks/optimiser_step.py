"""What AdamW's update costs in one pass over memory, beside one operation at a time, and how much of a step that is.

    python benchmarks/optimiser_step.py --preset tiny --rounds 7

A step of MPMA's preset on made-up volumes of 80 x 64 x 64 and reports (those of visible_tokens.py). `each` updates one
parameter after another, `foreach` lists of them, `fused` in one pass: torch's three ways of the same arithmetic. They
take turns (A B C A B C ...) on weights of their own, so that they meet the same neighbours; the first round is not
counted. CPU seconds of this process on one thread, medians. `losses` is forward and backward.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from visible_tokens import cpu_seconds, settings, studies

from tomoglot.recipes import mpma

WAYS: dict[str, dict[str, bool]] = {
    "each": {"foreach": False, "fused": False},
    "foreach": {"foreach": True, "fused": False},
    "fused": {"foreach": False, "fused": True},
}


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--preset", default="tiny", choices=sorted(mpma.PRESETS))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    batch = studies(given.batch, (80, 64, 64))
    torch.set_num_threads(1)
    modules = {}
    for way in WAYS:
        torch.manual_seed(0)
        modules[way] = settings(given.preset, 0.5).build(("t1w",)).train()
    optimisers = {
        way: torch.optim.AdamW(modules[way].parameters(), lr=1e-4, weight_decay=0.05, **flags)  # type: ignore[arg-type]
        for way, flags in WAYS.items()
    }

    def learn(way: str) -> None:
        torch.stack(list(modules[way].losses(batch, progress=0.0).values())).sum().backward()

    times: dict[tuple[str, str], list[float]] = {}
    for turn in range(given.rounds + 1):
        for way, optimiser in optimisers.items():
            torch.manual_seed(turn)
            seconds = {"losses": cpu_seconds(lambda way=way: learn(way)), "update": cpu_seconds(optimiser.step)}  # type: ignore[misc]
            optimiser.zero_grad()
            if turn:
                for name, value in seconds.items():
                    times.setdefault((way, name), []).append(value)
    trained = sum(parameter.numel() for parameter in modules["fused"].parameters())
    median = {key: statistics.median(values) for key, values in times.items()}
    print(f"{trained / 1e6:.1f} million parameters, torch {torch.__version__}")
    print("| AdamW | update, CPU s | of each | losses, CPU s | step of each |")
    print("|---|---|---|---|---|")
    whole = median["each", "update"] + median["each", "losses"]
    for way in WAYS:
        update, losses = median[way, "update"], median[way, "losses"]
        ratios = f"{update / median['each', 'update']:.2f} | {losses:.3f} | {(update + losses) / whole:.2f}"
        print(f"| {way} | {update:.4f} | {ratios} |", flush=True)


if __name__ == "__main__":
    main()
