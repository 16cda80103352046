"""A process that dies costs its own job and no other."""

import os
import signal

import pytest

from tomoglot.studies.pool import WorkerDied, each


def square_or_die(job: int) -> int:
    if job == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if job == 99:
        raise ArithmeticError("a job's own error is the caller's to see")
    return job * job


def test_a_job_that_kills_its_process_twice_is_given_up_and_the_others_are_done():
    found = dict(each(square_or_die, range(6), workers=2))
    assert isinstance(found.pop(3), WorkerDied)
    assert found == {job: job * job for job in (0, 1, 2, 4, 5)}


@pytest.mark.parametrize("workers", [1, 2])
def test_an_exception_of_the_work_itself_reaches_the_caller(workers):
    with pytest.raises(ArithmeticError):
        list(each(square_or_die, [99], workers=workers))
