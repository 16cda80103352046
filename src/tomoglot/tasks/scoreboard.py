"""A task's result as a table, on a terminal and in Markdown. A number is only ever shown with its interval."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table

from tomoglot.tasks.task import MACRO, Comparison, Score, TaskResult

# Of the rarer class; below, intervals drawn from the studies themselves are too narrow.
FEWEST = 10
OF_TWO_CLASSES = frozenset({"auroc", "average_precision", "balanced_accuracy", "f1"})
COLUMNS = ("score", "metric", "arm", "value [95 % interval]", "subjects", "prevalence")


def cells(score: Score) -> tuple[str, ...]:
    """One row of the table."""
    return (score.name, score.metric, score.arm, str(score), str(score.subjects), f"{score.prevalence:.2f}")


def compare_text(comparison: Comparison) -> str:
    """A comparison in a sentence."""
    return (
        f"{comparison.name} {comparison.metric}, {comparison.of} minus {comparison.against}: {comparison.value:+.3f} "
        f"[{comparison.low:+.3f}, {comparison.high:+.3f}], p = {comparison.p_holm:.2g} (paired bootstrap over "
        f"{comparison.subjects} subjects, Holm)"
    )


def title(result: TaskResult) -> str:
    """What was scored, and whether it is simulated."""
    kind = "SIMULATED data, " if result.simulated else ""
    return f"{result.task} ({kind}split {result.split}, {result.subjects} subjects, {result.studies} studies)"


def table(result: TaskResult, *, metrics: Iterable[str] | None = None) -> Table:
    """A rich table of some metrics (None: the first score's, and those compared), with comparisons and notes below."""
    main = [score.metric for score in result.scores[:1]] + [comparison.metric for comparison in result.comparisons]
    shown = set(main if metrics is None else metrics)
    drawn = Table(title=title(result), caption="\n".join(_remarks(result)), caption_justify="left")
    for column in COLUMNS:
        drawn.add_column(column, justify="left" if column in COLUMNS[:3] else "right")
    for score in result.scores:
        if score.metric in shown:
            drawn.add_row(*cells(score))
    return drawn


def markdown(result: TaskResult, *, metrics: Iterable[str] | None = None) -> str:
    """The same as Markdown, all metrics unless some are named."""
    shown = None if metrics is None else set(metrics)
    rows = [cells(score) for score in result.scores if shown is None or score.metric in shown]
    lines = [f"### {title(result)}", "", _line(COLUMNS), _line("---" for _ in COLUMNS), *map(_line, rows)]
    return "\n".join([*lines, "", *(f"- {remark}" for remark in _remarks(result))]) + "\n"


def _line(values: Iterable[str]) -> str:
    return "| " + " | ".join(value.replace("|", "\\|") for value in values) + " |"


def _remarks(result: TaskResult) -> list[str]:
    return [*map(compare_text, result.comparisons), *_few(result.scores), *result.notes]


def _few(scores: Iterable[Score]) -> list[str]:
    """Findings of which one class hardly occurs: of a single positive every draw holds the same, and gives [1, 1]."""
    counts = {}
    for score in scores:
        if score.metric in OF_TWO_CLASSES and not score.name.startswith(MACRO):
            studies = score.studies or score.subjects
            present = round(score.prevalence * studies)
            if min(present, studies - present) < FEWEST:
                counts[score.name] = f"{score.name} ({present} of {studies})"
    told = ", ".join(counts.values())
    why = f"Fewer than {FEWEST} studies of a class cannot show how far their score may be off, whatever the interval"
    return [f"{why}: {told}."] if told else []
