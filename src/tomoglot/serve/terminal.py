"""What a store holds, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table

from tomoglot.store.inspect import Summary

PATTERNS_SHOWN = 12


def describe(summary: Summary, sequences: Sequence[str]) -> Iterator[Table | str]:
    """Lines and tables: counts, grids, which sequences are missing together, findings by split."""
    kind = " (SIMULATED)" if summary.simulated == summary.studies else f" ({summary.simulated} simulated)"
    yield f"{summary.subjects} subjects, {summary.studies} studies{kind}; {summary.reports} with a report, " + (
        f"{summary.distinct_reports} distinct; {summary.masks} with a mask"
    )
    ratio = summary.bytes_of_voxels / max(summary.bytes_on_disk, 1)
    yield f"{summary.bytes_on_disk / 2**20:.1f} MiB on disk, voxels compressed {ratio:.1f} to 1"
    for spacing_mm, count in list(summary.spacings_mm.items())[:3]:
        yield f"spacing {' x '.join(f'{edge:g}' for edge in spacing_mm)} mm: {count} studies"
    if summary.cut is not None:
        yield f"WARNING: {summary.cut}"
    yield _missingness(summary, sequences)
    if summary.prevalence:
        yield _findings(summary)


def _missingness(summary: Summary, sequences: Sequence[str]) -> Table:
    table = Table("studies", *sequences, title="sequences acquired together")
    for pattern, count in list(summary.missingness.items())[:PATTERNS_SHOWN]:
        table.add_row(str(count), *("●" if has else "·" for has in pattern))
    left = len(summary.missingness) - PATTERNS_SHOWN
    table.add_row("all", *(str(summary.sequences[name]) for name in sequences), style="bold")
    if left > 0:
        table.caption = f"and {left} rarer patterns"
    return table


def _findings(summary: Summary) -> Table:
    table = Table("finding", *summary.splits, title="present / known, by split")
    for finding, by_split in summary.prevalence.items():
        table.add_row(finding, *(f"{by_split[name].present} / {by_split[name].known}" for name in summary.splits))
    return table
