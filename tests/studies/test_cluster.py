"""On Dask: the results of the pool, a dead worker costs its own job, and nothing is left running or listening."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("distributed", reason="Dask is in the extra tomoglot[dask]")

from tomoglot.studies.cluster import each_anywhere, each_on
from tomoglot.studies.pool import WorkerDied


def square_or_die(job: int) -> int:
    if job == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if job == 99:
        raise ArithmeticError("a job's own error is the caller's to see")
    return job * job


def whose(job: int) -> int:
    return os.getpid()


def test_a_job_that_kills_its_worker_twice_is_given_up_and_the_others_are_done():
    found = dict(each_on(None, square_or_die, range(8), workers=2))
    assert isinstance(found.pop(3), WorkerDied)
    assert found == {job: job * job for job in (0, 1, 2, 4, 5, 6, 7)}


def test_an_exception_of_the_work_itself_reaches_the_caller_and_no_process_stays():
    with pytest.raises(ArithmeticError):
        list(each_on(None, square_or_die, [99], workers=1))


def test_few_jobs_are_out_at_a_time_and_every_worker_listens_to_this_machine_only():
    taken = []
    jobs = (taken.append(job) or job for job in range(50))
    running = each_anywhere(whose, jobs, workers=1, scheduler="local")
    _, worker = next(running)
    assert len(taken) <= 4
    assert worker != os.getpid()
    for port in listening(worker) | listening(os.getpid()):
        assert port.startswith(("0100007F:", "00000000000000000000000001000000:")), "an address others can reach"
    running.close()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{worker}").exists()


def listening(process: int) -> set[str]:
    """Local addresses (hexadecimal, as the kernel writes them) on which a process listens."""
    if not Path("/proc/net/tcp").exists():
        pytest.skip("this system has no /proc/net")
    mine = {str(link.readlink()) for link in Path(f"/proc/{process}/fd").iterdir() if link.is_symlink()}
    lines = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    return {line[1] for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in mine}


def test_a_scheduler_that_is_not_there_is_said_in_words(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr("tomoglot.studies.cluster.PATIENCE_S", 1)
    with pytest.raises(ValueError, match="no Dask scheduler answers"):
        next(each_on(address, square_or_die, [1], workers=1))


def test_a_cluster_somewhere_else_is_used_and_left_running():
    from distributed import LocalCluster

    options = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(**options, protocol="tcp://", host="127.0.0.1") as there:
        for _ in range(2):
            assert dict(each_on(there.scheduler_address, abs, [-1, -2], workers=1)) == {-1: 1, -2: 2}


SLEEPER = """
import os, sys, time
from tomoglot.studies.cluster import each_on
def slow(job):
    # In one write: two workers share the pipe.
    os.write(1, b"began\\n")
    time.sleep(60)
if __name__ == "__main__":
    try:
        list(each_on(None, slow, range(9), workers=2))
    except KeyboardInterrupt:
        sys.exit(130)
"""


def test_ctrl_c_ends_everything_at_once_and_in_silence(tmp_path):
    script = tmp_path / "sleeper.py"
    script.write_text(SLEEPER)
    # A shell in the background may have told us to ignore Ctrl-C, which children would inherit.
    run = subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert run.stdout is not None and run.stdout.readline() == "began\n"
    os.killpg(run.pid, signal.SIGINT)
    _, said = run.communicate(timeout=30)
    assert run.returncode == 130
    assert said == ""
