"""A run as one page that opens anywhere: no network, no script, pictures inside.

It says what the model is and is not, how training went, every score with its interval beside its controls, what a
subset of the sequences is worth, what was rejected and why, and the digests that tie it to its data.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from tomoglot.checkpoint import RESEARCH_USE
from tomoglot.serve.page import ACCENT, INK, LINES, MUTED, RULE, Picture, draw, embedded, plain, render
from tomoglot.serve.subsets import ordered, subsets_picture
from tomoglot.store.catalogue import query
from tomoglot.store.reader import Store
from tomoglot.studies.atomic import write_bytes
from tomoglot.studies.nifti import read_nifti
from tomoglot.tasks.scoreboard import cells, compare_text, title
from tomoglot.tasks.task import MODEL, TaskResult

# A page, not an archive: more rows than this are counted and left out.
MOST_ROWS = 200
MOST_REPORTS = 4


def write_report(
    out: Path,
    *,
    run: Path,
    results: Sequence[TaskResult],
    store: Store | None = None,
    montage: Path | None = None,
) -> Path:
    """Write `report.html` in the folder `out` and return its path.

    Raises:
        ValueError: `run` holds no run.
    """
    config = _json(run / "config.json")
    if config is None:
        raise ValueError(f"{run.name}: no config.json here; give a run folder")
    data = _json(run / "data.json") or {}
    rows = [] if store is None else store.rows
    simulated = bool(data.get("simulated")) or any(result.simulated for result in results)
    words = _montage_words(simulated)
    shown = embedded(montage.read_bytes(), words) if montage is not None and montage.is_file() else None
    page = render(
        "report.html",
        use=RESEARCH_USE,
        simulated=simulated,
        recipe=str(config.get("recipe", {}).get("class", "")).partition(":")[2].removesuffix(".Config"),
        studies=len(rows),
        subjects=len({row.subject for row in rows}),
        curves=curve_pictures(_metrics(run / "metrics.jsonl")),
        tasks=[_task(result) for result in results],
        montage=shown,
        templates=template_picture(run / "templates", simulated=simulated),
        # A real report is never copied into a page that is made to be passed on.
        reports=[row.report for row in rows if row.simulated and row.report][:MOST_REPORTS],
        rejected=[] if store is None else rejected_rows(store),
        most_rows=MOST_ROWS,
        facts=_facts(data, store, run),
        config=json.dumps(config, indent=2, sort_keys=True),
    )
    write_bytes(out / "report.html", page.encode())
    return out / "report.html"


def report_run(run: Path, *, store: Path | None = None) -> Path:
    """Write a run's page again from its folder: `results/*.json`, and a store or a montage where they lie beside it.

    Raises:
        ValueError: the folder holds no run, or a damaged result.
    """
    results = [TaskResult.load(path) for path in sorted((run / "results").glob("*.json"))]
    beside = store or run.parent / "store"
    opened = Store.open(beside) if store is not None or (beside / "store.json").is_file() else None
    data, same = _json(run / "data.json") or {}, True
    if store is None and opened is not None:
        # A store that merely lies beside the run may be another one's.
        same = opened.digest == data.get("store_digest")
    return write_report(
        run, run=run, results=results, store=opened if same else None, montage=run.parent / "montage.png"
    )


def rejected_rows(store: Store) -> list[dict[str, Any]]:
    """What ingest refused: reason, evidence, sequence and file name, never a subject."""
    return query(store.path, "SELECT reason, evidence, sequence, file FROM rejected ORDER BY reason, evidence")


def curve_pictures(lines: Sequence[dict[str, Any]]) -> list[Picture]:
    """Loss terms, learning rate and effective rank over steps; nothing where there is no step."""
    if not lines:
        return []
    steps = [line["step"] for line in lines]
    names = sorted({name for line in lines for name in line.get("terms", {})})
    terms = {}
    for name in names:
        having = [line for line in lines if name in line.get("terms", {})]
        terms[name] = ([line["step"] for line in having], _smooth([line["terms"][name] for line in having]))
    pictures = [
        _curves("Loss terms", terms),
        _curves("Learning rate", {"learning rate": (steps, [line["learning_rate"] for line in lines])}),
    ]
    ranked = [line for line in lines if line.get("effective_rank") is not None]
    if ranked:
        points = [line["step"] for line in ranked], [line["effective_rank"] for line in ranked]
        pictures.append(_curves("Effective rank of embeddings", {"effective rank": points}))
    return pictures


def forest_picture(result: TaskResult) -> Picture | None:
    """AUROC of the model and its controls, a finding a row, with intervals; the line at one half is chance."""
    scores = [score for score in result.scores if score.metric == "auroc"]
    if not scores:
        return None
    names = list(dict.fromkeys(score.name for score in scores))
    arms = list(dict.fromkeys(score.arm for score in scores))
    figure = Figure(figsize=(7.2, 0.6 + 0.42 * len(names)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0.5, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
    for score in scores:
        arm = arms.index(score.arm)
        height = names.index(score.name) + (arm - (len(arms) - 1) / 2) * 0.22
        colour = ACCENT if score.arm == MODEL else ("#b9885f", "#9aa5b1")[(arm - 1) % 2]
        axes.plot([score.low, score.high], [height, height], color=colour, linewidth=2.2, solid_capstyle="round")
        axes.plot([score.value], [height], "o", color=colour, markersize=5, markeredgecolor="white")
    for arm, name in enumerate(arms):
        colour = ACCENT if name == MODEL else ("#b9885f", "#9aa5b1")[(arm - 1) % 2]
        axes.plot([], [], "o-", color=colour, label=name)
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(min(0.4, *(score.low for score in scores)) - 0.02, 1.02)
    axes.set_xlabel("AUROC, 95 % interval over subjects", color=MUTED, fontsize=9)
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside upper right", frameon=False, ncols=len(arms), fontsize=9
    )
    plain(axes)
    return draw(figure, f"AUROC with 95 % intervals of {', '.join(arms)} for {', '.join(names)}")


def template_picture(folder: Path, *, simulated: bool) -> Picture | None:
    """Mid-slices of each learned template, a sequence a column: seen from above, from the front and from the right."""
    volumes = {path.name.split(".")[0]: read_nifti(path) for path in sorted(folder.glob("*.nii.gz"))}
    if not volumes:
        return None
    figure = Figure(figsize=(1.25 * len(volumes) + 0.2, 4.1), layout="constrained")
    grid = figure.subplots(3, len(volumes), squeeze=False)
    for column, (name, volume) in enumerate(volumes.items()):
        voxels = volume.voxels.astype(np.float32)
        low, high = np.percentile(voxels, [0.5, 99.5])
        for row, along in enumerate((2, 1, 0)):
            axes = grid[row, column]
            middle = np.take(voxels, voxels.shape[along] // 2, axis=along)
            # Front and head upwards; each row is a plane through the middle of the grid.
            axes.imshow(middle.T, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), origin="lower")
            axes.set_axis_off()
        grid[0, column].set_title(name, fontsize=9, color=INK)
    return draw(
        figure, f"{'Simulated: l' if simulated else 'L'}earned templates of {', '.join(volumes)}, middle slices"
    )


def _task(result: TaskResult) -> dict[str, Any]:
    subsets = ordered(result.subsets)
    return {
        "title": title(result),
        "simulated": result.simulated,
        "forest": forest_picture(result),
        "rows": [(score.arm == MODEL, cells(score)) for score in result.scores],
        "comparisons": [compare_text(comparison) for comparison in result.comparisons],
        "matrix": subsets_picture(result),
        "subsets": [(" + ".join(row.sequences), str(row.score), row.score.subjects, row.left_out) for row in subsets],
        "spreads": [(row.name, f"{row.low:.3f} to {row.high:.3f}", row.pairs) for row in result.spreads],
        "notes": result.notes,
    }


def _facts(data: dict[str, Any], store: Store | None, run: Path) -> list[tuple[str, str]]:
    environment = _json(run / "environment.json") or {}
    facts = [
        ("data digest", data.get("store_digest")),
        ("split digest", data.get("split_digest")),
        ("training studies", data.get("studies")),
        ("training subjects", data.get("subjects")),
        ("sequences", ", ".join(data.get("sequences", []))),
        ("commit", environment.get("commit")),
    ]
    if store is not None:
        facts += [
            (f"plan: {key}", value) for key, value in store.plan.model_dump(mode="json").items() if key != "class"
        ]
    return [(key, str(value)) for key, value in facts if value not in (None, "")]


def _montage_words(simulated: bool) -> str:
    return "Slices of simulated studies, one a row" if simulated else "Slices of studies"


def _curves(name: str, lines: dict[str, tuple[list[int], list[float]]]) -> Picture:
    figure = Figure(figsize=(4.6, 2.9), layout="constrained")
    axes = figure.subplots()
    for at, (label, (steps, values)) in enumerate(lines.items()):
        axes.plot(steps, values, color=LINES[at % len(LINES)], linewidth=1.6, label=label)
    axes.set_title(name, loc="left", fontsize=10, color=INK)
    axes.set_xlabel("step", color=MUTED, fontsize=9)
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize=8)
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    plain(axes)
    return draw(figure, f"{name} over training steps")


def _smooth(values: list[float], *, share: float = 0.9) -> list[float]:
    """Exponential mean, without the pull of its first value."""
    mean, weight, smooth = 0.0, 0.0, []
    for value in values:
        mean, weight = share * mean + (1 - share) * value, share * weight + (1 - share)
        smooth.append(mean / weight)
    return smooth


def _json(path: Path) -> dict[str, Any] | None:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def _metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl; a last line that was cut short by a kill is left out."""
    lines: list[dict[str, Any]] = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
