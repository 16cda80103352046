"""What zero-shot asks: for each finding, sentences that a radiologist would write if it is there, and if it is not.

Several wordings of one question are averaged, so that no single phrase decides. The sentences are ours, in
`prompts.toml`. A user's own come as a JSON file: ``{"mass": {"present": ["..."], "absent": ["..."]}}``.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from pydantic import Field

from tomoglot.config import Settings
from tomoglot.studies.organ import organ_of


class Prompts(Settings):
    """The question for one finding: sentences for its presence and for its absence."""

    present: tuple[str, ...] = Field(min_length=1)
    absent: tuple[str, ...] = Field(min_length=1)


_BY_ORGAN = {
    organ: {finding: Prompts.model_validate(sides) for finding, sides in asked.items()}
    for organ, asked in tomllib.loads(resources.files(__package__).joinpath("prompts.toml").read_text("utf-8")).items()
}
# By finding; `normal` here is that of the brain.
PROMPTS: Mapping[str, Prompts] = {
    finding: prompts for organ in reversed(_BY_ORGAN) for finding, prompts in _BY_ORGAN[organ].items()
}


def prompts_for(findings: Sequence[str]) -> dict[str, Prompts]:
    """The packaged prompts of those findings that have any, `normal` in the words of the organ of the others."""
    organ = organ_of(findings)
    own = _BY_ORGAN.get(organ, {})
    return {finding: own.get(finding, PROMPTS[finding]) for finding in findings if finding in PROMPTS}


def read_prompts(path: Path) -> dict[str, Prompts]:
    """Read a user's prompts, by finding.

    Raises:
        ValueError: the file is not such JSON, or a finding lacks sentences for one of the two sides.
    """
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path.name}: cannot be read as JSON prompts: {error}") from error
    shape = '{"finding": {"present": ["..."], "absent": ["..."]}}'
    if not isinstance(given, dict) or not given:
        raise ValueError(f"{path.name}: prompts look like {shape}")
    prompts: dict[str, Prompts] = {}
    for finding, sides in given.items():
        try:
            prompts[finding] = Prompts.model_validate(sides)
        except ValueError as error:
            raise ValueError(f"{path.name}: the prompts of {finding!r} do not look like {shape}: {error}") from error
    return prompts
