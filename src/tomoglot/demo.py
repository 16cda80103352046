"""`tomoglot demo`: the whole journey once, on simulated studies, with every stage timed.

cohort -> ingest and curate -> store -> pre-train -> zero-shot and probe, with controls -> one page a person can read.
"""

from __future__ import annotations

import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from pydantic import Field

from tomoglot.checkpoint import load_checkpoint
from tomoglot.config import Settings
from tomoglot.run import RunConfig, pretrain
from tomoglot.serve.report import write_report
from tomoglot.store.plan import Plan
from tomoglot.store.reader import Store
from tomoglot.store.writer import IngestSummary, write_store
from tomoglot.studies.atomic import write_bytes
from tomoglot.studies.phantom.files import write_cohort
from tomoglot.studies.phantom.montage import draw_montage
from tomoglot.studies.source import read_source
from tomoglot.tasks import abnormality, zero_shot
from tomoglot.tasks.task import TaskResult, write_json

Say = Callable[[str], None]
Bar = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]

# Written beside the good studies, so that the page shows what a refusal looks like.
DAMAGED = ("one series cut short", "one series with a flipped bit")
SPLIT_FRACTIONS = {"train": 0.7, "val": 0.1, "test": 0.2}


class DemoConfig(Settings):
    """Sizes of the demo, chosen by measurement for two cores and ten minutes."""

    subjects: int = Field(1800, ge=40)
    seed: int = 0
    simulated_spacing_mm: float = 4.0
    store_spacing_mm: float = 4.0
    field_voxels: tuple[int, int, int] = (40, 48, 40)
    workers: int = Field(2, ge=1)
    run: tuple[str, ...] = ()


class Stopwatch:
    """Wall seconds of each stage, in order."""

    def __init__(self, say: Say) -> None:
        self.seconds: dict[str, float] = {}
        self._say = say

    @contextmanager
    def stage(self, name: str, what: str) -> Iterator[None]:
        """Announce a stage, time it, and say how long it took."""
        self._say(f"[{name}] {what}")
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 1)
        self._say(f"[{name}] done in {self.seconds[name]:.1f} s")


def run_demo(out: Path, config: DemoConfig, *, say: Say, progress: Bar) -> Path:
    """Run every stage into `out` and write `report.html` and `summary.json` there; returns the page.

    A demo folder that is there already is finished rather than begun again: the store and the run resume.

    Raises:
        ValueError: `out` holds a demo of other settings.
    """
    _claim(out, config)
    watch = Stopwatch(say)
    say(f"tomoglot demo: {config.subjects} SIMULATED subjects; research use only")
    with watch.stage("cohort", "simulating brain MRI studies with reports and ground truth"):
        _simulate(out / "cohort", config, progress)
        montage = draw_montage(out / "cohort", out / "montage.png")
    with watch.stage("ingest", "reading every file strictly, rejecting with reasons, writing the store"):
        ingested = _ingest(out, config, progress)
    say(f"         {ingested.accepted} studies stored, {ingested.rejected} rejections")
    store = Store.open(out / "store")
    with watch.stage("pretrain", "MedMAP, stage 1: an adapter a sequence against one frozen text encoder"):
        _pretrain(out, config, progress)
    loaded = load_checkpoint(out / "run")
    with watch.stage("zero-shot", "asking the images in words; beside it, from scratch and image removed"):
        asked = zero_shot.score(loaded, store, zero_shot.Config(seed=config.seed))
    with watch.stage("probe", "a linear probe on frozen features; beside it, from scratch and image removed"):
        probe = abnormality.score(loaded, store, abnormality.Config(seed=config.seed))
    results = [asked, probe]
    with watch.stage("report", "one page, no network needed"):
        for result in results:
            result.save(out / "run" / "results")
        page = write_report(out, run=out / "run", store=store, results=results, montage=montage)
    _summarise(out, config, watch, ingested, results)
    _farewell(out, page, results, say)
    return page


def _claim(out: Path, config: DemoConfig) -> None:
    """Take the folder for these settings, or refuse one that was begun with others."""
    recorded = out / "demo.json"
    if recorded.exists():
        if recorded.read_text(encoding="utf-8") != config.to_json():
            raise ValueError(f"{out.name} holds a demo of other settings; give another --out, or remove it")
        return
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out.name} is not empty and holds no demo; give another --out")
    out.mkdir(parents=True, exist_ok=True)
    write_bytes(recorded, config.to_json().encode())


def _simulate(folder: Path, config: DemoConfig, progress: Bar) -> None:
    if (folder / "studies.csv").exists():
        return
    with progress("simulating") as report:
        table = write_cohort(
            folder,
            subjects=config.subjects,
            seed=config.seed,
            spacing_mm=config.simulated_spacing_mm,
            workers=config.workers,
            split_fractions=SPLIT_FRACTIONS,
            progress=report,
        )
    _plant_damage(table)


def _plant_damage(table: Path) -> None:
    """Add two damaged series to the table, as an archive would hold them: the demo shows how they are refused."""
    lines = table.read_text(encoding="utf-8").splitlines()
    header = lines[0].split(",")
    first = next(line for line in lines[1:] if line.split(",")[header.index("path")])
    source = table.parent / first.split(",")[header.index("path")]
    content = source.read_bytes()
    middle = len(content) // 2
    damaged = {
        "cut-short": content[:middle],
        "flipped-bit": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
    }
    (table.parent / "damaged").mkdir(exist_ok=True)
    added = []
    for name, data in damaged.items():
        path = f"damaged/{name}.nii.gz"
        (table.parent / path).write_bytes(data)
        row = {"subject": f"damaged-{name}", "study": "ses-01", "sequence": "t1w", "path": path, "split": "train"}
        added.append(",".join(row.get(column, "") for column in header))
    write_bytes(table, ("\n".join([*lines, *added]) + "\n").encode())


def _ingest(out: Path, config: DemoConfig, progress: Bar) -> IngestSummary:
    step = config.store_spacing_mm
    plan = Plan(spacing_mm=(step, step, step), field_voxels=config.field_voxels)
    sources = read_source(out / "cohort")
    with progress("ingesting") as report:
        # No look at what the simulator made, each subject from a seed of its own: measures and pictures take 38 ms of
        # CPU a study, and the search for copies among 9,000 series minutes.
        return write_store(
            sources, out / "store", plan, workers=config.workers, seed=config.seed, look=False, progress=report
        )


def _pretrain(out: Path, config: DemoConfig, progress: Bar) -> None:
    settings = RunConfig.named("medmap:tiny").but(seed=config.seed).set(config.run)
    with progress("pre-training") as report:
        pretrain(settings, out / "store", out / "run", progress=lambda step, total: report(step.number, total))


def _summarise(
    out: Path, config: DemoConfig, watch: Stopwatch, ingested: IngestSummary, results: list[TaskResult]
) -> None:
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    to_mib = 1 / 2**20 if sys.platform == "darwin" else 1 / 2**10
    summary = {
        "simulated": True,
        "subjects": config.subjects,
        "seed": config.seed,
        "studies_stored": ingested.accepted,
        "rejections": ingested.rejected,
        "seconds": watch.seconds,
        "seconds_total": round(sum(watch.seconds.values()), 1),
        "peak_memory_mib": {"this_process": round(peaks[0] * to_mib), "largest_worker": round(peaks[1] * to_mib)},
        "disk_mib": {
            part: round(sum(f.stat().st_size for f in (out / part).rglob("*") if f.is_file()) / 2**20, 1)
            for part in ("cohort", "store", "run")
        },
        "results": [result.but(predictions=()).model_dump(mode="json") for result in results],
    }
    write_json(out / "summary.json", summary)


def _farewell(out: Path, page: Path, results: list[TaskResult], say: Say) -> None:
    width = min(100, shutil.get_terminal_size((100, 20)).columns)
    say("-" * width)
    for result in results:
        score = result.score()
        say(
            f"{result.task}: {score.name} {score.value:.3f} [{score.low:.3f}, {score.high:.3f}], "
            f"{score.subjects} held-out simulated subjects"
        )
    say(f"The page: {page}")
    say("On your own studies (a table, a BIDS folder or a known layout):")
    say(f"  tomoglot ingest YOUR_FOLDER --out store --plan-of {out / 'run'}")
    say("  tomoglot pretrain medmap:tiny --store store --out runs/mine")
    say(f"  tomoglot evaluate zero_shot --from {out / 'run'} --store store --split all")
