"""Run one function over many jobs in other processes, so that a process that dies costs one job, not the run."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import zarr

J = TypeVar("J")
R = TypeVar("R")


class WorkerDied:
    """Stands in for the result of a job whose process died twice, the second time with nothing beside it."""


def each(work: Callable[[J], R], jobs: Iterable[J], *, workers: int) -> Iterator[tuple[J, R | WorkerDied]]:
    """Yield each job with its result, in the order in which they finish.

    With one worker everything runs in this process. With more, jobs run in fresh processes of one thread each; when
    one dies (killed for memory, a crash in a decoder), the jobs that were running are tried once more, each alone.
    An exception raised by `work` stops the iteration.
    """
    if workers <= 1:
        for job in jobs:
            yield job, work(job)
        return
    waiting = deque(jobs)
    while waiting:
        suspects: list[J] = []
        yield from _until_one_dies(work, waiting, workers, suspects)
        for job in suspects:
            yield job, _alone(work, job)


def _until_one_dies(
    work: Callable[[J], R], waiting: deque[J], workers: int, suspects: list[J]
) -> Iterator[tuple[J, R]]:
    # No more jobs are handed over than there are workers, so that a death has few suspects.
    running: dict[Future[R], J] = {}
    with _pool(workers) as pool:
        while (waiting or running) and not suspects:
            try:
                while waiting and len(running) < workers:
                    running[pool.submit(work, waiting[0])] = waiting[0]
                    waiting.popleft()
            except BrokenProcessPool:
                suspects.extend(running.values())
                return
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                job = running.pop(future)
                try:
                    result = future.result()
                except BrokenProcessPool:
                    suspects.append(job)
                else:
                    yield job, result
        suspects.extend(running.values())


def _alone(work: Callable[[J], R], job: J) -> R | WorkerDied:
    with _pool(1) as pool:
        try:
            return pool.submit(work, job).result()
        except BrokenProcessPool:
            return WorkerDied()


def _pool(workers: int) -> ProcessPoolExecutor:
    # Spawned, not forked: the parent may hold threads (tensorstore, torch, zarr), which a fork would break.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_begin)


def _begin() -> None:
    # A worker whose parent was killed would wait for its next job for ever.
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    zarr.config.set({"threading.max_workers": 1})


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"
    parent.join()
    os._exit(1)
