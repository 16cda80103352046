r"""Score real multiple-sclerosis studies zero-shot beside as many simulated normal ones; say how far apart they are.

    python examples/real_beside_simulated.py --run runs/demo/run --simulated runs/demo/store \
        --real path/to/open_ms --work work/open_ms --out results/open_ms.md

The model has only ever seen simulated studies. Nothing here is a statement about the people imaged.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from tomoglot.checkpoint import load_checkpoint
from tomoglot.demo import DemoConfig
from tomoglot.store.reader import Store
from tomoglot.store.writer import write_store
from tomoglot.studies.phantom import write_cohort
from tomoglot.studies.source import read_source
from tomoglot.tasks.embeddings import embed_split, opened
from tomoglot.tasks.queries.prompts import PROMPTS
from tomoglot.tasks.zero_shot import against_others, embed_prompts, probabilities, study_scores

FINDINGS = ("demyelination", "mass", "infarct", "haemorrhage", "volume_loss", "normal")


def main() -> None:
    """Ingest both, score both, compare, write a page of Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("run", "simulated", "real", "work", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    given = parser.parse_args()
    loaded = load_checkpoint(given.run)
    write_store(read_source(given.real), given.work / "real", loaded.card.plan)
    real = Store.open(given.work / "real")
    # Another seed than the demo's: these simulated people were never seen.
    cohort = given.work / "normal"
    spacing_mm = DemoConfig().simulated_spacing_mm
    write_cohort(cohort, subjects=len(real.rows), seed=1234, spacing_mm=spacing_mm, only="normal")
    write_store(read_source(cohort), given.work / "normal-store", loaded.card.plan)
    normal = Store.open(given.work / "normal-store")
    held_out = Store.open(given.simulated)

    questions = against_others(embed_prompts(loaded.recipe, {name: PROMPTS[name] for name in FINDINGS}))
    rows, vectors = [], {}
    for kind, store, split in (("real MS", real, None), ("simulated normal", normal, None), ("", held_out, "test")):
        recipe, settings = opened(loaded, store, None)
        embedded = embed_split(recipe, store, split=split, loader=settings, wanted="aligned")
        aligned, used = embedded.aligned_or_fail(), embedded.acquired
        mean = aligned.sum(axis=1) / np.maximum(used.sum(axis=1, keepdims=True), 1)
        vectors[kind] = mean / np.linalg.norm(mean, axis=1, keepdims=True)
        directions = np.stack([questions[name].direction for name in FINDINGS])
        asked = probabilities(study_scores(aligned, used, directions))
        if kind:
            for at in range(len(mean)):
                shown = " ".join(name for name, has in zip(embedded.sequences, used[at], strict=True) if has)
                rows.append((f"{kind} {at + 1}", shown, *(f"{value:.2f}" for value in asked[at])))
    text = page(rows, vectors, str(given.run))
    given.out.write_text(text, encoding="utf-8")
    print(text)


def page(rows: list[tuple[str, ...]], vectors: dict[str, np.ndarray], run: str) -> str:
    """Markdown: the command, the probabilities as they came, and the distance from simulated to real."""
    reference = vectors[""]

    def nearest(of: np.ndarray, *, itself: bool) -> float:
        cosine = of @ reference.T
        if itself:
            np.fill_diagonal(cosine, -1.0)
        return float(np.median(1 - cosine.max(axis=1)))

    among = nearest(reference, itself=True)
    far = {kind: nearest(vectors[kind], itself=False) / among for kind in ("real MS", "simulated normal")}
    scores = {kind: [float(row[2]) for row in rows if row[0].startswith(kind)] for kind in far}
    above = np.mean([a > b for a in scores["real MS"] for b in scores["simulated normal"]])
    lines = [
        "# Real studies, zero-shot, beside simulated normal ones",
        "",
        "Research use only. The model was trained on SIMULATED studies alone. The real studies are those of `open_ms`",
        "(Lesjak et al. 2017, doi 10.1007/s12021-017-9348-7, and 2016; CC BY): people with multiple sclerosis, and no",
        "report belongs to them. Probabilities are sigmoids of similarities, as they came, not calibrated.",
        "",
        f"Command: `python examples/real_beside_simulated.py --run {run} …` (the file's head has it whole)",
        "",
        "| study | acquired | " + " | ".join(FINDINGS) + " |",
        "|---|---|" + "---|" * len(FINDINGS),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        f"- Pairs in which the real MS study gets the higher `demyelination`: **{above:.2f}** of all (0.50 is chance).",
        f"- Distance to the nearest simulated test study, in units of the same among simulated test studies (medians): "
        f"real MS **{far['real MS']:.1f}**, new simulated normal {far['simulated normal']:.1f}.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
