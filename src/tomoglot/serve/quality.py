"""A cohort on one page: what stands out first, what was refused and why, copies and leaks, then what it looks like.

Made from the tables and small pictures of a curation: no volume is read again. It names no subject, study or file: a
study is its row in `accepted.parquet`, counted from 1.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from tomoglot.serve.page import ACCENT, INK, MUTED, RULE, Picture, draw, embedded, plain, render
from tomoglot.studies.appearance import BINS, CELLS, SHOWN_PERCENTILES, TILE, unpack
from tomoglot.studies.atomic import write_bytes
from tomoglot.studies.curate import ACCEPTED, DUPLICATES, REJECTED, SERIES, Curated, curate
from tomoglot.studies.duplicates import COARSE, coarse, filled, shared_reports
from tomoglot.studies.source import Sources

QUALITY_FILE = "quality.html"
# Iglewicz and Hoaglin (1993): beyond 3.5 robust standard deviations from the median.
FAR = 3.5
LEAST_FOR_MEDIAN = 8
# A spread below 2 % is not told apart: most of a cohort has one spacing, and rounding in it is no outlier.
LEAST_SPREAD = 0.02
# A page, not an archive: more than this is counted and left to the tables.
MOST_OUTLIERS, MOST_PAIRS, MOST_ROWS, MOST_SEQUENCES, MOST_TILES, MOST_SAMPLED = 24, 24, 2000, 16, 12, 2000

Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One number of a series that is compared with the others of its sequence, on a scale of ratios."""

    name: str
    unit: str
    of: Callable[[Columns], NDArray[np.float64]]


MEASURES = (
    Measure(name="unlikeness to the others' mean", unit="", of=lambda all_: all_["unlike"]),
    Measure(name="slices", unit="", of=lambda all_: _along_coarsest(all_, all_["shape"])),
    Measure(name="largest voxel edge", unit="mm", of=lambda all_: all_["spacing_mm"].max(axis=1)),
    Measure(name="smallest voxel edge", unit="mm", of=lambda all_: all_["spacing_mm"].min(axis=1)),
    Measure(name="width (left to right)", unit="mm", of=lambda all_: _extent(all_, 0)),
    Measure(name="depth (back to front)", unit="mm", of=lambda all_: _extent(all_, 1)),
    Measure(name="height (foot to head)", unit="mm", of=lambda all_: _extent(all_, 2)),
    Measure(name="range of values", unit="", of=lambda all_: all_["high"] - all_["low"]),
    Measure(name="share with signal", unit="", of=lambda all_: all_["foreground"]),
    Measure(name="signal over background spread", unit="", of=lambda all_: all_["contrast"]),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlier:
    """A series (its place in the series table) that stands out, how far at most, and in what, in words."""

    place: int
    far: float
    words: tuple[str, ...]


def curate_cohort(
    sources: Sources,
    out: Path,
    *,
    workers: int = 1,
    scheduler: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Curated, Path]:
    """Curate studies into tables in `out` (see `studies.curate.curate`) and write the page about them."""
    done = curate(sources, out, workers=workers, scheduler=scheduler, progress=progress)
    return done, write_quality(out)


def write_quality(folder: Path) -> Path:
    """Write `quality.html` from the tables that `curate`, or `ingest` into a store, wrote in `folder`; return its path.

    Raises:
        ValueError: the tables are not there.
    """
    if not all((folder / name).is_file() for name in (ACCEPTED, REJECTED, SERIES, DUPLICATES)):
        raise ValueError(
            f"{folder.name}: no finished curation here, and no store whose studies were looked at; "
            "run tomoglot curate, or tomoglot ingest, first"
        )
    series = _series(folder)
    outliers = list(find_outliers(series))
    pairs, num_leaks, num_pairs = _pairs(folder, series)
    reasons, rejected = _rejected(folder)
    first = [outlier.place for outlier in outliers]
    page = render(
        "quality.html",
        simulated=bool(series["simulated"].any()),
        num_studies=len(np.unique(series["number"])),
        num_subjects=len(np.unique(series["subject"].astype(str))),
        num_series=len(series["number"]),
        num_rejected=sum(count for _, count in reasons),
        num_outliers=len(outliers),
        num_pairs=num_pairs,
        num_leaks=num_leaks,
        num_unseen=_count(folder / ACCEPTED) - len(np.unique(series["number"])),
        num_split=sum(side is not None for side in series["split"]),
        outliers=[(_tile(folder, series, one.place), one.words) for one in outliers[:MOST_OUTLIERS]],
        few=_names(series, lambda count: count < LEAST_FOR_MEDIAN),
        far=FAR,
        least=LEAST_FOR_MEDIAN,
        reasons=reasons,
        rejected=rejected,
        pairs=pairs,
        reports=shared_reports(folder / ACCEPTED),
        mosaics=[_mosaic(folder, series, name, first) for name in _names(series)[:MOST_SEQUENCES]],
        histograms=[_histograms(series, name) for name in _names(series)[:MOST_SEQUENCES]],
        left_out=_names(series)[MOST_SEQUENCES:],
    )
    write_bytes(folder / QUALITY_FILE, page.encode())
    return folder / QUALITY_FILE


def find_outliers(series: Columns) -> Iterator[Outlier]:
    """Series that lie far from the median of their sequence in any measure, the furthest first.

    Distances are robust: in units of 1.4826 times the median absolute deviation, of logarithms.
    """
    logs = np.stack([np.log(np.maximum(measure.of(series), 1e-9)) for measure in MEASURES])
    far, middle = np.zeros_like(logs), np.zeros_like(logs)
    for name in _names(series, lambda count: count >= LEAST_FOR_MEDIAN):
        mine = series["sequence"] == name
        median = np.median(logs[:, mine], axis=1, keepdims=True)
        spread = 1.4826 * np.median(np.abs(logs[:, mine] - median), axis=1, keepdims=True)
        far[:, mine], middle[:, mine] = (logs[:, mine] - median) / np.maximum(spread, LEAST_SPREAD), median
    most = np.abs(far).max(axis=0, initial=0.0)
    for place in np.argsort(-most, kind="stable"):
        if most[place] < FAR:
            return
        words = []
        for at in np.argsort(-np.abs(far[:, place]), kind="stable"):
            if abs(far[at, place]) >= FAR:
                has, usual = (_number(float(np.exp(value[at, place]))) for value in (logs, middle))
                unit = f" {MEASURES[at].unit}" if MEASURES[at].unit else ""
                words.append(f"{MEASURES[at].name} {has}{unit}, usually {usual} ({far[at, place]:+.1f})")
        yield Outlier(place=int(place), far=float(most[place]), words=tuple(words))


def _count(table: Path) -> int:
    with duckdb.connect() as connection:
        found = connection.execute("SELECT count(*) FROM read_parquet($path)", {"path": str(table)}).fetchall()
    return int(found[0][0])


def _series(folder: Path) -> Columns:
    """The series table by columns, with each study's row number in the accepted table."""
    query = """
        SELECT s.* EXCLUDE (signature, digest), a.number, signature FROM (FROM read_parquet($series)) s
        JOIN (SELECT subject, study, row_number() OVER () AS number FROM read_parquet($accepted)) a
        USING (subject, study) ORDER BY a.number, s.tile"""
    files = {"series": str(folder / SERIES), "accepted": str(folder / ACCEPTED)}
    with duckdb.connect() as connection:
        found = connection.execute(query, files)
        names, rows = [column[0] for column in found.description], list[tuple[Any, ...]]()
        while some := found.fetchmany(1024):
            rows += [(*row[:-1], coarse(filled(unpack(row[-1]))).astype(np.float16)) for row in some]
    lists = {"shape": 3, "spacing_mm": 3, "histogram": BINS, "signature": (CELLS // COARSE) ** 3}
    series: Columns = {}
    for name, values in zip(names, zip(*rows, strict=True) if rows else [()] * len(names), strict=True):
        series[name] = np.array(values, float).reshape(-1, lists[name]) if name in lists else np.array(values)
    series["unlike"] = _unlike(series["sequence"], series.pop("signature"))
    return series


def _unlike(sequences: NDArray[Any], cells: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far each volume's coarse signature is from the mean of its sequence: 1 minus their correlation."""
    unlike = np.zeros(len(cells))
    for name in np.unique(sequences):
        mine = cells[sequences == name]
        rest = mine - mine.mean(axis=1, keepdims=True)
        mean = rest.mean(axis=0)
        scale = np.linalg.norm(rest, axis=1) * np.linalg.norm(mean)
        unlike[sequences == name] = 1.0 - rest @ mean / np.maximum(scale, 1e-9)
    return np.maximum(unlike, 1e-3)


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _names(series: Columns, wanted: Callable[[int], bool] = lambda count: True) -> list[str]:
    """Sequences, the most frequent first."""
    names, counts = np.unique(series["sequence"].astype(str), return_counts=True)
    order = np.lexsort((names, -counts))
    return [str(names[at]) for at in order if wanted(int(counts[at]))]


def _extent(series: Columns, axis: int) -> NDArray[np.float64]:
    return np.asarray(series["shape"][:, axis] * series["spacing_mm"][:, axis])


def _along_coarsest(series: Columns, values: NDArray[Any]) -> NDArray[np.float64]:
    axis = series["spacing_mm"].argmax(axis=1)
    return np.asarray(np.take_along_axis(values, axis[:, None], axis=1)[:, 0])


def _tile(folder: Path, series: Columns, place: int) -> dict[str, Any]:
    """Three slices of a series for the page; a picture that is gone leaves its words."""
    words = f"study {series['number'][place]}, {series['sequence'][place]}"
    try:
        with Image.open(folder / str(series["picture"][place])) as strips:
            top = TILE * int(series["tile"][place])
            buffer = io.BytesIO()
            strips.crop((0, top, 3 * TILE, top + TILE)).save(buffer, "JPEG", quality=82)
    except OSError:
        return {"words": words, "picture": None}
    return {"words": words, "picture": embedded(buffer.getvalue(), f"{words}: three slices", kind="jpeg")}


def _mosaic(folder: Path, series: Columns, name: str, first: Sequence[int]) -> tuple[str, int, list[dict[str, Any]]]:
    """A sequence, how many series it has, and tiles: outliers before the others, which are spread over the cohort."""
    mine = np.flatnonzero(series["sequence"] == name)
    far = [place for place in first if series["sequence"][place] == name][: MOST_TILES // 3]
    others = np.setdiff1d(mine, far)
    count = min(MOST_TILES - len(far), len(others))
    spread = others[np.unique(np.linspace(0, len(others) - 1, count).round().astype(int))] if count else []
    places = [*((place, True) for place in far), *((int(place), False) for place in spread)]
    return name, len(mine), [{**_tile(folder, series, place), "far": is_far} for place, is_far in places]


def _histograms(series: Columns, name: str) -> Picture:
    """Values of a sequence's series (median, 10th to 90th percentile), and how four of its measures are spread."""
    mine = np.flatnonzero(series["sequence"] == name)
    sample = mine[np.unique(np.linspace(0, len(mine) - 1, min(MOST_SAMPLED, len(mine))).round().astype(int))]
    shares = series["histogram"][sample]
    figure = Figure(figsize=(11, 1.9), layout="constrained")
    axes = figure.subplots(1, 5)
    centres = (np.arange(BINS) + 0.5) / BINS
    low, middle, high = np.percentile(shares, [10, 50, 90], axis=0)
    axes[0].fill_between(centres, low, high, color=ACCENT, alpha=0.25, linewidth=0)
    axes[0].plot(centres, middle, color=ACCENT, linewidth=1.4)
    axes[0].set_yscale("symlog", linthresh=1e-3)
    axes[0].set_yticks([])
    axes[0].set_xlabel(f"value, {SHOWN_PERCENTILES[0]} to {SHOWN_PERCENTILES[1]} %ile", color=MUTED, fontsize=8)
    for axis, at in zip(axes[1:], (2, 6, 8, 9), strict=True):
        values = MEASURES[at].of(series)[mine]
        around = float(values.min()) * 0.98, float(values.max()) * 1.02 + 1e-6
        axis.hist(values, bins=20, range=around, color=ACCENT, edgecolor="white", linewidth=0.5)
        axis.set_xlabel(f"{MEASURES[at].name} {MEASURES[at].unit}", color=MUTED, fontsize=8)
        axis.locator_params(axis="y", nbins=3, integer=True)
    for axis in axes:
        plain(axis)
        axis.tick_params(labelsize=8)
        axis.grid(axis="y", color=RULE, linewidth=0.5)
        axis.set_axisbelow(True)
    figure.suptitle(f"{name}, {len(mine)} series", fontsize=10, color=INK, x=0.005, ha="left")
    return draw(
        figure, f"Distributions of {name}: values, voxel edge, height, share with signal, signal over background"
    )


def _rejected(folder: Path) -> tuple[list[tuple[str, int]], list[tuple[int, str, str, str]]]:
    """Reasons with their counts, and rows (number, reason, sequence, evidence) in the order of the reasons.

    A file's name may name a person: it stays in the table.
    """
    query = """
        WITH numbered AS (SELECT *, row_number() OVER () AS number FROM read_parquet($path)),
             counted AS (SELECT reason, count(*) AS count FROM numbered GROUP BY reason)
        SELECT number, reason, sequence, evidence, file, count FROM numbered JOIN counted USING (reason)
        ORDER BY count DESC, reason, number"""
    with duckdb.connect() as connection:
        found = connection.execute(query, {"path": str(folder / REJECTED)}).fetchall()
    reasons = {reason: count for _, reason, *_, count in found}
    rows = [
        (number, reason, sequence, evidence.replace(file, "the file") if file else evidence)
        for number, reason, sequence, evidence, file, _ in found[:MOST_ROWS]
    ]
    return list(reasons.items()), rows


def _pairs(folder: Path, series: Columns) -> tuple[list[dict[str, Any]], int, int]:
    """Copies for the page, leaks first; how many leak, and how many there are."""
    query = "SELECT * FROM read_parquet($path) ORDER BY leak DESC, likeness DESC, subject, study, sequence"
    with duckdb.connect() as connection:
        found = connection.execute(query, {"path": str(folder / DUPLICATES)})
        names = [column[0] for column in found.description]
        rows = [dict(zip(names, row, strict=True)) for row in found.fetchall()]
    who = zip(series["subject"], series["study"], series["sequence"], strict=True)
    places = {tuple(map(str, key)): place for place, key in enumerate(who)}
    shown = [
        {
            **row,
            "tiles": [
                _tile(folder, series, places[row[f"{side}subject"], row[f"{side}study"], row[f"{side}sequence"]])
                for side in ("", "other_")
            ],
        }
        for row in rows[:MOST_PAIRS]
    ]
    return shown, sum(bool(row["leak"]) for row in rows), len(rows)
