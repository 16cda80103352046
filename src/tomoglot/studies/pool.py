"""Run one function over many jobs in other processes, so that a process that dies costs one job, not the run."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import TypeVar

J = TypeVar("J")
R = TypeVar("R")


class WorkerDied:
    """Stands in for the result of a job whose process died twice, the second time with nothing beside it."""


def each(work: Callable[[J], R], jobs: Iterable[J], *, workers: int) -> Generator[tuple[J, R | WorkerDied], None, None]:
    """Yield each job with its result, in the order in which they finish.

    With one worker everything runs in this process. With more, jobs run in fresh processes; when one dies (killed for
    memory, a crash in a decoder), the jobs that were running are tried once more, each alone. An exception raised by
    `work` stops the iteration.

    Ctrl-C with one worker waits for the job that runs (a second one does not). With more, the processes are ended at
    once, as they are whenever the iteration is given up: `work` must leave nothing half done that others would see.
    """
    if workers <= 1:
        for job in jobs:
            with _ctrl_c_put_off():
                result = work(job)
            yield job, result
        return
    waiting = deque(jobs)
    while waiting:
        suspects: list[J] = []
        with _ended_with(_pool(min(workers, len(waiting)))) as pool:
            yield from _until_one_dies(pool, work, waiting, workers, suspects)
        for job in suspects:
            yield job, _alone(work, job)


def _until_one_dies(
    pool: ProcessPoolExecutor, work: Callable[[J], R], waiting: deque[J], workers: int, suspects: list[J]
) -> Iterator[tuple[J, R]]:
    # No more jobs are handed over than there are workers, so that a death has few suspects.
    running: dict[Future[R], J] = {}
    while (waiting or running) and not suspects:
        try:
            while waiting and len(running) < workers:
                with out_of_reach_of_ctrl_c():
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
    with _ended_with(_pool(1)) as pool:
        try:
            with out_of_reach_of_ctrl_c():
                future = pool.submit(work, job)
            return future.result()
        except BrokenProcessPool:
            return WorkerDied()


def _pool(workers: int) -> ProcessPoolExecutor:
    # Spawned, not forked: the parent may hold threads (tensorstore, torch, DuckDB), whose locks a fork would copy.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_begin)


@contextmanager
def _ended_with(pool: ProcessPoolExecutor) -> Iterator[ProcessPoolExecutor]:
    """Leave with nothing running: after an error, or when nobody wants the results, without waiting for them."""
    others = set(multiprocessing.active_children())
    with pool:
        try:
            yield pool
        except BaseException:
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            raise


@contextmanager
def _ctrl_c_put_off() -> Iterator[None]:
    """Raise a KeyboardInterrupt that comes meanwhile at the end: libraries with threads of their own complain else."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []

    def put_off(number: int, _frame: object) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    signal.signal(signal.SIGINT, put_off)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if caught:
        raise KeyboardInterrupt


@contextmanager
def out_of_reach_of_ctrl_c() -> Iterator[None]:
    """Let processes that start meanwhile never see the Ctrl-C that a terminal sends to all of us.

    Each would print a traceback, and leave its study half written. A blocked signal stays blocked in a child, from its
    first instruction on; here it is only put off.
    """
    # Begun first: starting it unblocks the signal.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin() -> None:
    # No worker starts a process. Said before anything is imported, so that locks made at import (numcodecs has one) get
    # no name, which somebody would have to remove if the worker is killed.
    multiprocessing.set_start_method("fork", force=True)
    # A worker whose parent was killed would wait for its next job for ever.
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"
    parent.join()
    os._exit(1)
