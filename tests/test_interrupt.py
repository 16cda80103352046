"""Ctrl-C in a real process: one line, exit code 130, nothing half visible, and the same command goes on."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tomoglot.store.reader import Store
from tomoglot.store.verify import verify
from tomoglot.studies.nifti import write_nifti
from tomoglot.studies.pool import each
from tomoglot.studies.study import Volume

STUDIES = 12
# Far more than the seconds it takes: a busy machine must not fail the test.
PATIENCE_S = 300


def command(*arguments: str) -> subprocess.Popen[str]:
    """A process group of its own: a terminal sends Ctrl-C to every process of the group.

    A shell starts background jobs deaf to Ctrl-C, and their children inherit it; tests that run in one must still hear.
    """
    hear = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{hear}; from tomoglot.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def interrupt(running: subprocess.Popen[str], *, when: Callable[[], bool]) -> str:
    """Wait for a moment, press Ctrl-C, and give what was said on standard error."""
    until = time.monotonic() + PATIENCE_S
    while not when():
        assert running.poll() is None, "it ended before it could be interrupted"
        if time.monotonic() > until:
            os.killpg(running.pid, signal.SIGKILL)
            running.communicate()
            pytest.fail("nothing was done that could be interrupted")
        time.sleep(0.005)
    os.killpg(running.pid, signal.SIGINT)
    return running.communicate(timeout=PATIENCE_S)[1]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Noise: as many studies as take a while."""
    rng = np.random.default_rng(0)
    rows = ["subject,sequence,path"]
    for number in range(STUDIES):
        voxels = rng.integers(1, 2000, (72, 72, 72), dtype=np.int16)
        write_nifti(tmp_path / f"{number}.nii.gz", Volume(voxels=voxels, affine=np.eye(4)))
        rows.append(f"subject-{number},t1w,{number}.nii.gz")
    path = tmp_path / "studies.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_ingest_that_is_interrupted_says_so_leaves_nothing_half_done_and_goes_on(
    table: Path, tmp_path: Path, workers: str
) -> None:
    store = tmp_path / "store"
    arguments = ("ingest", str(table), "--out", str(store), "--workers", workers)

    def finished() -> int:
        return len(list(store.glob("studies/[0-9a-f]*")))

    running = command(*arguments)
    said = interrupt(running, when=lambda: finished() >= 1)
    assert running.returncode == 130
    told = [line for line in said.splitlines() if not line.startswith("ingesting ")]
    assert len(told) == 1 and told[0].startswith("interrupted; ")
    kept = finished()
    assert 1 <= kept < STUDIES
    assert not list(store.rglob(".writing-*")) and not (store / "store.json").exists()
    again = command(*arguments)
    assert f"{kept}/{STUDIES}" in again.communicate(timeout=PATIENCE_S)[1] and again.returncode == 0
    assert len(Store.open(store).rows) == STUDIES and verify(store) == []


def interrupted_at_two(job: int) -> int:
    if job == 2:
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.01)
    return job


@pytest.fixture
def listening() -> Iterator[None]:
    """Ctrl-C is heard, even where the tests themselves run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("listening")
def test_with_one_worker_the_job_under_way_is_finished_first() -> None:
    done: list[int] = []
    before = signal.getsignal(signal.SIGINT)

    def work(job: int) -> int:
        found = interrupted_at_two(job)
        done.append(found)
        return found

    with pytest.raises(KeyboardInterrupt):
        list(each(work, range(5), workers=1))
    assert done == [0, 1, 2] and signal.getsignal(signal.SIGINT) is before


def sleep_long(job: int) -> int:
    time.sleep(60 if job else 0)
    return job


def test_processes_end_at_once_when_nobody_wants_their_results() -> None:
    started = time.monotonic()
    found = each(sleep_long, range(3), workers=2)
    assert next(found) == (0, 0)
    found.close()
    assert time.monotonic() - started < 30
