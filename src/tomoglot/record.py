"""The files of a run folder besides its checkpoints: settings, environment, data and the numbers of each step."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch

import tomoglot
from tomoglot.checkpoint import latest
from tomoglot.config import Settings
from tomoglot.studies.atomic import write_bytes
from tomoglot.training import Step

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# Settings that change no number of a run, so that a run may go on with others.
FREE_ON_RESUME = frozenset({"save_every_steps", "keep_last", "loader.workers", "loader.prefetch"})

VERSIONS_OF = ("torch", "numpy", "lightning-fabric", "safetensors", "tensorstore", "zarr", "transformers")


def open_folder(out: Path, config: Settings, data: dict[str, Any], fabric: Fabric, *, resume: bool) -> None:
    """Start the record of a run in `out`, or check that the one that is there is of this very run.

    A run that ended in an error before its first step has done nothing: its settings give way to other ones.

    Raises:
        ValueError: `out` holds something else, or a run with other settings or data; the differing keys are named.
    """
    out.mkdir(parents=True, exist_ok=True)
    recorded = out / "config.json"
    if recorded.is_file() and not _has_begun(out):
        write_bytes(recorded, config.to_json().encode())
    elif recorded.is_file():
        if not resume:
            raise ValueError(f"{out.name} already holds a run; choose another folder, or resume it")
        # Read as settings, not as JSON: one that a later version added has its default there.
        before = type(config).load(recorded)
        _check_same(json.loads(before.to_json()), json.loads(config.to_json()), FREE_ON_RESUME)
        if (out / "data.json").is_file():
            _check_same(json.loads((out / "data.json").read_text(encoding="utf-8")), data, frozenset())
    elif any(not entry.name.startswith(".") for entry in out.iterdir()):
        raise ValueError(f"{out.name} is not empty and holds no run; choose an empty or a new folder")
    else:
        write_bytes(recorded, config.to_json().encode())
    _write_json(out / "data.json", data)
    began = latest(out)
    suffix = "" if began is None else f"-{began.name}"
    _write_json(out / f"environment{suffix}.json", _environment(fabric))


def _has_begun(out: Path) -> bool:
    metrics = out / "metrics.jsonl"
    return latest(out) is not None or (metrics.is_file() and metrics.stat().st_size > 0)


def _check_same(recorded: Any, asked: Any, free: frozenset[str]) -> None:
    before, after = dict(_flat(recorded)), dict(_flat(asked))
    differing = sorted(
        key for key in before.keys() | after.keys() if key not in free and before.get(key) != after.get(key)
    )
    if differing:
        changes = "; ".join(f"{key} was {before.get(key)!r}, now {after.get(key)!r}" for key in differing)
        raise ValueError(
            f"this folder holds a run with other settings or data ({changes}); give the recorded ones to resume it, "
            "or choose another folder"
        )


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _environment(fabric: Fabric) -> dict[str, Any]:
    """What ran: nothing in it names a host, a person or a folder."""
    device = torch.cuda.get_device_name(fabric.device) if fabric.device.type == "cuda" else fabric.device.type
    return {
        "commit": _commit(),
        "tomoglot": tomoglot.__version__,
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in VERSIONS_OF},
        "machine": {
            "system": platform.system(),
            "architecture": platform.machine(),
            "cpus": os.cpu_count(),
            "device": device,
            "devices": fabric.world_size,
            "torch_threads": torch.get_num_threads(),
        },
    }


def _commit() -> str | None:
    """Commit of the checkout that this code lies in, with ``+changes`` where it was edited; None if installed."""
    git, here = shutil.which("git"), Path(__file__).parent
    # Only a checkout of tomoglot itself: a virtual environment may lie inside another project's.
    if git is None or not (here.parents[1] / ".git").exists():
        return None
    answers = [
        subprocess.run([git, *words], cwd=here, capture_output=True, text=True, check=False)
        for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
    ]
    if any(answer.returncode for answer in answers):
        return None
    return answers[0].stdout.strip() + ("+changes" if answers[1].stdout.strip() else "")


class MetricsLog:
    """Lines of metrics.jsonl and the same numbers for TensorBoard, without anything after the step begun from."""

    def __init__(self, out: Path, begun_from: int, *, write: bool) -> None:
        self._file: Any = None
        self._events: Any = None
        self._out, self._begun_from, self._write = out, begun_from, write

    def __enter__(self) -> Self:
        if self._write:
            path = self._out / "metrics.jsonl"
            kept = list(_lines_until(path, self._begun_from))
            write_bytes(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
            self._file = path.open("a", encoding="utf-8")
            self._events = _Events(self._out)
            for line in kept:
                self._events.add(line)
        return self

    def __exit__(self, *_: object) -> None:
        if self._write:
            self._file.close()
            self._events.close()

    def add(self, step: Step, *, effective_rank: float | None) -> None:
        """Write one step; it is with the operating system when this returns."""
        if not self._write:
            return
        line: dict[str, Any] = {
            "step": step.number,
            "loss": step.loss,
            "terms": dict(step.terms),
            "learning_rate": step.learning_rate,
            "grad_norm": step.grad_norm,
            "samples": step.samples,
            "seconds": round(step.seconds, 4),
            "stream": step.stream,
        }
        if effective_rank is not None:
            line["effective_rank"] = effective_rank
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        self._events.add(line)


def _lines_until(path: Path, step: int) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:  # the last line of a process that was killed while writing it
            return
        if line["step"] > step:
            return
        yield line


class _Events:
    """TensorBoard's file, made anew from metrics.jsonl at each start, so that a resumed run has no double points.

    Written with TensorBoard's own record writer and not its `SummaryWriter`, which puts the host's name in the name.
    """

    def __init__(self, out: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = Event, Summary
        # Opened for writing: the numbers up to here are given to `add` again.
        self._writer = RecordWriter((out / "events.out.tfevents.0.tomoglot").open("wb"))
        self._writer.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())

    def add(self, line: Mapping[str, Any]) -> None:
        """Add the numbers of one line of metrics.jsonl."""
        numbers = {key: value for key, value in line.items() if isinstance(value, float)}
        numbers |= {f"terms/{name}": value for name, value in line["terms"].items()}
        values = [self._summary.Value(tag=tag, simple_value=value) for tag, value in numbers.items()]
        event = self._event(wall_time=time.time(), step=line["step"], summary=self._summary(value=values))
        self._writer.write(event.SerializeToString())
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


def _write_json(path: Path, value: Any) -> None:
    write_bytes(path, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())
