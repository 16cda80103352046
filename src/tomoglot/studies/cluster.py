"""Run one function over many jobs on Dask: processes here, or a cluster of machines that share the files.

A worker that dies costs its study, not the run. Nothing is authenticated by Dask's plain `tcp://`: whoever reaches the
scheduler's port can run code as its user. Use `tls://` (set in Dask's own configuration) outside a closed network.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from tomoglot.studies.pool import WorkerDied, each, out_of_reach_of_ctrl_c

if TYPE_CHECKING:
    from distributed import Client

J = TypeVar("J")
R = TypeVar("R")

LOCAL = "local"
# Jobs out at a time for each worker: one that runs and one that waits, so that no worker stands still.
AHEAD = 2
PATIENCE_S = 30


def each_anywhere(
    work: Callable[[J], R], jobs: Iterable[J], *, workers: int, scheduler: str | None
) -> Generator[tuple[J, R | WorkerDied], None, None]:
    """Yield each job with its result: in processes of our own, or on Dask where a `scheduler` is given.

    "local" is a Dask cluster of `workers` processes on this machine. Without Dask is the default on one machine: it
    starts sooner, opens no port, and a death costs only what it must (docs/decisions/0005).
    """
    if scheduler is None:
        return each(work, jobs, workers=workers)
    return each_on(None if scheduler == LOCAL else scheduler, work, jobs, workers=workers)


def each_on(
    scheduler: str | None, work: Callable[[J], R], jobs: Iterable[J], *, workers: int
) -> Generator[tuple[J, R | WorkerDied], None, None]:
    """As `pool.each`, on the Dask cluster at the address `scheduler`, or on `workers` processes here.

    Results come in the order in which they finish; at most two jobs a worker are out at a time, whatever their number.
    A job that was lost with its worker is tried once more with nothing else running, then stands as `WorkerDied`. An
    exception raised by `work` stops the iteration; so does Ctrl-C, which leaves no process of ours behind.

    Raises:
        ValueError: Dask is not installed, or there is no scheduler at that address.
    """
    with _client(scheduler, workers) as client:
        coming, suspects = iter(jobs), list[J]()
        running: dict[Any, J] = {}
        while True:
            for job in islice(coming, max(0, _room(client) - len(running))):
                running[client.submit(work, job, pure=False)] = job
            if not running:
                break
            for future in _finished(running):
                job = running.pop(future)
                result = _result(future)
                if isinstance(result, WorkerDied):
                    suspects.append(job)
                else:
                    yield job, result
        for job in suspects:
            yield job, _result(client.submit(work, job, pure=False))


def _room(client: Client) -> int:
    return AHEAD * max(1, sum(client.nthreads().values()))


def _finished(running: Iterable[Any]) -> list[Any]:
    from distributed import wait

    return list(wait(list(running), return_when="FIRST_COMPLETED").done)


def _result(future: Any) -> Any:
    """A future's result, `WorkerDied` where its worker did; its memory on the cluster is given back."""
    from distributed import KilledWorker

    try:
        return future.result()
    except KilledWorker:
        return WorkerDied()
    finally:
        future.release()


@contextmanager
def _client(scheduler: str | None, workers: int) -> Iterator[Client]:
    try:
        import dask
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise ValueError("a scheduler needs Dask: pip install 'tomoglot[dask]'") from error
    quiet = {
        # One death is enough to suspect a job: it is tried alone, not beside others which it would take along.
        "distributed.scheduler.allowed-failures": 0,
        "distributed.scheduler.http.routes": [],
        "distributed.worker.http.routes": [],
        "distributed.nanny.http.routes": [],
    }
    with ExitStack() as stack:
        stack.enter_context(dask.config.set(quiet))
        address: Any = scheduler
        # Processes begun meanwhile never see the Ctrl-C that a terminal sends to all of us.
        with out_of_reach_of_ctrl_c():
            if scheduler is None:
                address = LocalCluster(
                    n_workers=workers,
                    threads_per_worker=1,
                    processes=True,
                    host="127.0.0.1",
                    dashboard_address="127.0.0.1:0",
                    scheduler_kwargs={"dashboard": False},
                    silence_logs=50,
                )
                stack.enter_context(closing(address))
            try:
                client = Client(address, timeout=PATIENCE_S)
            except OSError as error:
                raise ValueError(f"no Dask scheduler answers at {scheduler}; is it running, and reachable?") from error
        yield stack.enter_context(closing(client))
