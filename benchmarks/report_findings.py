"""Scores of the findings labeller: on sentences of our own, on simulated reports, and on coded chest X-ray reports.

    python benchmarks/report_findings.py [WHEEL]

Prints the tables of results/report_findings.md. WHEEL is a torchxrayvision 1.5.7 wheel, which holds 3,955 real chest
X-ray reports (Open-i, CC BY-NC-ND 4.0) with codes that people gave; they are read where they lie, and only counts are
printed.
"""

from __future__ import annotations

import sys
import tarfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "studies"))

from finding_sentences import CERTAINTIES, macro_f1, read_sentences, score  # noqa: E402

from tomoglot.studies.findings import LISTS, label_report  # noqa: E402
from tomoglot.studies.phantom import COHORTS  # noqa: E402

# What people coded, by finding: the codes (before the first slash) that say the same.
CODES = {
    "cardiomegaly": {"cardiomegaly"},
    "pleural_effusion": {"pleural effusion"},
    "atelectasis": {"pulmonary atelectasis"},
    "emphysema": {"pulmonary emphysema", "emphysema", "bullous emphysema"},
    "lung_nodule": {"nodule", "granuloma", "calcified granuloma"},
    "lung_opacity": {"opacity", "infiltrate", "airspace disease"},
    "consolidation": {"consolidation"},
    "hiatal_hernia": {"hernia, hiatal"},
    "pulmonary_fibrotic_sequela": {"pulmonary fibrosis", "cicatrix"},
    "medical_material": {
        *("catheters, indwelling", "medical device", "implanted medical device", "surgical instruments"),
        *("tube, inserted", "stents", "sutures"),
    },
    "normal": {"normal"},
}


def own_sentences() -> None:
    """Each part by certainty, then by finding for all."""
    print("### Our own sentences\n\n| part | said | right | wrong | missed | precision | recall | F1 |")
    print("|---|---|---|---|---|---|---|---|")
    macro = []
    for half in ("open", "blind", "fresh"):
        counts = score(read_sentences(half))
        macro.append(f"{half} {macro_f1(counts):.3f}")
        for said in CERTAINTIES:
            one = counts["", said]
            numbers = (
                f"{one.right} | {one.wrong} | {one.missed} | {one.precision:.3f} | {one.recall:.3f} | {one.f1:.3f}"
            )
            print(f"| {half} | {said} | {numbers} |")
    print(f"\nMacro-F1 of present over findings: {', '.join(macro)}.\n")
    both = score([one for half in ("open", "blind", "fresh") for one in read_sentences(half)])
    print("| finding | present: said, P, R | absent: said, P, R | uncertain: said, P, R |\n|---|---|---|---|")
    for finding in dict.fromkeys(name for names in LISTS.values() for name in names):
        cells = []
        for said in CERTAINTIES:
            one = both.get((finding, said))
            cells.append("-" if one is None else f"{one.right + one.missed}, {one.precision:.2f}, {one.recall:.2f}")
        print(f"| {finding} | {' | '.join(cells)} |")


def simulated(organ: str, generate: Callable[..., object], count: int) -> None:
    """Truth against the labels of the reports of one simulated cohort."""
    table: dict[str, Counter[tuple[bool, str]]] = {}
    for index in range(count):
        study = generate(11, index, spacing_mm=6.0)
        findings = [name for name in study.labels if name in LISTS[organ]]
        for finding, said in label_report(study.report.text, findings).items():
            table.setdefault(finding, Counter())[study.labels[finding] > 0.5, said] += 1
    print(f"\n### Simulated {organ} reports, {count} studies\n")
    print("| finding | there: present / uncertain / absent / no word | not there: the same |")
    print("|---|---|---|")
    order = ("present", "uncertain", "absent", "not_mentioned")
    for finding, counts in table.items():
        sides = (" / ".join(str(counts[is_there, said]) for said in order) for is_there in (True, False))
        print(f"| {finding} | {' | '.join(sides)} |")


def coded_reports(wheel: Path) -> Iterator[tuple[str, set[str]]]:
    """Text and codes of each report in the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith("NLMCXR_reports.tgz"))
        with archive.open(name) as packed, tarfile.open(fileobj=packed, mode="r|gz") as reports:
            for member in reports:
                opened = reports.extractfile(member) if member.name.endswith(".xml") else None
                if opened is not None:
                    root = ElementTree.fromstring(opened.read())
                    parts = {part.get("Label"): part.text or "" for part in root.iter("AbstractText")}
                    text = f"FINDINGS: {parts.get('FINDINGS', '')}\nIMPRESSION: {parts.get('IMPRESSION', '')}"
                    yield text, {(code.text or "").split("/")[0].lower() for code in root.iter("major")}


def real_reports(wheel: Path) -> None:
    """Where people coded a finding, and where the labeller calls it present."""
    every = list(coded_reports(wheel))
    begun = time.process_time()
    told = [label_report(text, tuple(CODES)) for text, _ in every]
    spent = time.process_time() - begun
    print(f"\n### Real chest X-ray reports, {len(every)}; {1000 * spent / len(every):.2f} ms CPU a report\n")
    print("| finding | coded | called present | both | precision | recall |\n|---|---|---|---|---|---|")
    for finding, codes in CODES.items():
        coded = [bool(codes & given) for _, given in every]
        called = [one[finding] == "present" for one in told]
        both = sum(a and b for a, b in zip(coded, called, strict=True))
        shares = f"{both / max(1, sum(called)):.2f} | {both / max(1, sum(coded)):.2f}"
        print(f"| {finding} | {sum(coded)} | {sum(called)} | {both} | {shares} |")


def main() -> None:
    """Every table, in the order of the page."""
    own_sentences()
    for organ, cohort in COHORTS.items():
        simulated(organ, cohort.generate, 100)
    if len(sys.argv) > 1:
        real_reports(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
