"""Confusion of sequence naming on header sets that we wrote, by class and by confidence, and names of real series.

    python benchmarks/sequence_naming.py [FOLDER]

Prints the tables of results/sequence_naming.md. FOLDER holds one sub-folder of DICOM files a data set; without it,
../shared/data beside the checkout is taken where it is. The header sets are ours: they are from no scanner.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "studies"))

from header_sets import HeaderSet, read_dicom_acquisitions, read_header_sets  # noqa: E402

from tomoglot.studies.naming import name_series  # noqa: E402
from tomoglot.studies.sequence import base_sequence  # noqa: E402

T1 = {"t1c", "pre_contrast", "arterial", "portal_venous", "delayed", "hepatobiliary"}


def by_class(sets: list[HeaderSet], title: str) -> None:
    """A row a class: what was wanted, what came, precision and recall; then everything off the diagonal."""
    wanted = Counter(one.wanted or f"({one.kind})" for one in sets)
    answers = [(one.wanted or f"({one.kind})", name_series(one.acquisition)) for one in sets]
    given = Counter(naming.sequence or f"({naming.kind})" for _, naming in answers)
    right = Counter(want for want, naming in answers if want == (naming.sequence or f"({naming.kind})"))
    print(f"\n### {title}: {len(sets)} header sets\n")
    print("| class | sets | named so | right | precision | recall |\n|---|---|---|---|---|---|")
    for name in sorted(wanted | given, key=lambda one: (one.startswith("("), one)):
        precision = f"{right[name] / given[name]:.2f}" if given[name] else "-"
        recall = f"{right[name] / wanted[name]:.2f}" if wanted[name] else "-"
        print(f"| {name} | {wanted[name]} | {given[name]} | {right[name]} | {precision} | {recall} |")
    wrong = Counter((want, naming.sequence or f"({naming.kind})") for want, naming in answers)
    cells = [f"{want} -> {got}: {n}" for (want, got), n in sorted(wrong.items()) if want != got]
    print(f"\nOff the diagonal: {'; '.join(cells) or 'nothing'}.")
    honest = [(one, naming) for one, (_, naming) in zip(sets, answers, strict=True) if one.wanted and not one.lie]
    unnamed = sum(naming.sequence is None for _, naming in honest)
    print(f"Honest and nameable: {len(honest)}, of them left unknown {unnamed}.")
    lies = [(one, naming) for one, (_, naming) in zip(sets, answers, strict=True) if one.lie]
    false = sum(naming.sequence not in (None, one.wanted) for one, naming in lies)
    print(f"Lying: {len(lies)}, left unknown {sum(n.sequence is None for _, n in lies)}, named wrongly {false}.")


def by_confidence(sets: list[HeaderSet]) -> None:
    """How often a name of each confidence is right."""
    answers = Counter()
    for one in sets:
        naming = name_series(one.acquisition)
        if naming.sequence is not None:
            answers[round(naming.confidence, 2), naming.sequence == one.wanted] += 1
    print("\n| confidence | named | right |\n|---|---|---|")
    for level in sorted({level for level, _ in answers}):
        print(f"| {level:.2f} | {answers[level, True] + answers[level, False]} | {answers[level, True]} |")


def family(name: str) -> str:
    """Names that the same timing serves, with or without contrast medium."""
    return "t1w" if name in T1 else base_sequence(name)


def copied_words(sets: list[HeaderSet]) -> None:
    """Every honest MR header under description and protocol of every other that shows another family."""
    honest = [
        one
        for one in sets
        if one.wanted and not one.lie and one.acquisition.scanning_sequence and one.acquisition.description
    ]
    counts: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    begun = time.process_time()
    for true in honest:
        for other in honest:
            if true.wanted and other.wanted and family(true.wanted) != family(other.wanted):
                words = other.acquisition
                lying = replace(true.acquisition, description=words.description, protocol=words.protocol)
                name = name_series(lying).sequence
                kind = "unknown" if name is None else "right" if family(name) == family(true.wanted) else "wrong"
                counts[kind] += 1
                if name is not None and kind == "wrong":
                    wrong[f"{family(true.wanted)} -> {family(name)}"] += 1
    spent = time.process_time() - begun
    total = counts.total()
    print(f"\n### Words of another exam on {len(honest)} MR headers: {total} pairs\n")
    print(", ".join(f"{kind} {counts[kind]} ({counts[kind] / total:.1%})" for kind in ("unknown", "right", "wrong")))
    print("Wrong: " + "; ".join(f"{pair}: {n}" for pair, n in wrong.most_common(12)) + "; ...")
    print(f"{1000 * spent / total:.2f} ms CPU a header.")


def real_series(folder: Path) -> None:
    """Names of series on disk."""
    print("\n### Real series\n\n| data set | series | names |\n|---|---|---|")
    for name, series in read_dicom_acquisitions(folder).items():
        names = Counter(str(name_series(one).sequence) for one in series)
        print(f"| {name} | {len(series)} | {', '.join(f'{n} x {what}' for what, n in sorted(names.items()))} |")


def main() -> None:
    """Every table, in the order of the page."""
    halves = {half: read_header_sets(half) for half in ("blind", "open")}
    by_class(halves["blind"], "Blind half")
    by_class(halves["open"], "Open half")
    by_confidence(halves["blind"] + halves["open"])
    copied_words(halves["blind"] + halves["open"])
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT.parent / "shared" / "data"
    if folder.is_dir():
        real_series(folder)


if __name__ == "__main__":
    main()
