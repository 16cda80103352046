"""The command line: one verb a stage, each a thin call of one public function.

Rooms are imported inside the verbs, so that `tomoglot --help` answers without loading torch. What a user gave wrong is
one line on standard error and exit code 2; Ctrl-C leaves with 130 and SIGTERM, while training, with 143.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tomoglot.cli import benches, cohorts, journey, models, raw
from tomoglot.cli.options import app

__all__ = ["app", "benches", "cohorts", "journey", "main", "models", "raw"]


def main() -> None:
    """Run the command line; turn what a user gave wrong into one line and exit code 2."""
    try:
        app()
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {_in_one_line(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        _say_interrupted()
        raise SystemExit(130) from None
    except SystemExit as left:
        # Ctrl-C, which Typer turns into this code without a word, and a training that was stopped by a signal.
        if left.code in (130, 143):
            _say_interrupted()
        raise


def _say_interrupted() -> None:
    print(
        "interrupted; what was finished is kept: the same command goes on, or where it cannot (scores) begins again",
        file=sys.stderr,
    )


def _in_one_line(error: Exception) -> str:
    """A settings error lists every value that does not fit, each on lines of its own: put them in one.

    Of what the system refuses, the file's own name is said: neither the number of the error nor the folders above.
    """
    if isinstance(error, OSError) and error.strerror:
        file = error.filename2 or error.filename
        named = f"{Path(os.fsdecode(file)).name}: " if isinstance(file, str | bytes) else ""
        return f"{named}{error.strerror}"
    wrong = getattr(error, "errors", None)
    if not callable(wrong):
        return " ".join(str(error).split("\n"))
    return "; ".join(f"{'.'.join(map(str, one['loc'])) or 'settings'}: {one['msg']}" for one in wrong())
