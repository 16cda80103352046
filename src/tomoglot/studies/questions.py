"""Questions about studies with their answers, from a table: one question a row (CSV) or a line (JSON lines).

Columns: subject, study, question, answer; and where wanted kind (a word that scores are told apart by), form (`closed`
or `open`) and sequence (the question is about that series alone, and nothing else of the study is shown with it).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from tomoglot.config import Settings
from tomoglot.studies.atomic import write_bytes
from tomoglot.studies.sequence import canonical_sequence
from tomoglot.studies.study import Rejected

Form = Literal["closed", "open"]
FORMATS = (".jsonl", ".csv")
YES_NO = ("yes", "no")


class Question(Settings):
    """One question about one study.

    Attributes:
        subject: as the store has it, and so `study`.
        answer: in lower case, without the full stop at its end: answers are compared as they stand here.
        kind: what is asked for, such as `presence` or `site`.
        form: `closed` is answered by yes or no, or by one of what the question names; without a word of the table it is
            closed where the answer is yes or no.
        sequence: the one series that the question is about; None is about the study.
    """

    subject: str = Field(min_length=1)
    study: str = Field(min_length=1)
    question: str = Field(min_length=1)
    answer: str = Field(min_length=1)
    kind: str = Field("other", min_length=1)
    form: Form = "open"
    sequence: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _closed_by_its_answer(cls, value: Any) -> Any:
        if isinstance(value, dict) and "form" not in value and plain_answer(str(value.get("answer", ""))) in YES_NO:
            return value | {"form": "closed"}
        return value

    @field_validator("subject", "study", "question", "kind", mode="after")
    @classmethod
    def _one_space(cls, value: str) -> str:
        if not (words := " ".join(value.split())):
            raise ValueError("is empty")
        return words

    @field_validator("answer", mode="after")
    @classmethod
    def _plain(cls, value: str) -> str:
        if not (words := plain_answer(value)):
            raise ValueError("is empty")
        return words

    @field_validator("sequence", mode="after")
    @classmethod
    def _known_name(cls, value: str | None) -> str | None:
        try:
            return None if value is None else canonical_sequence(value)
        except Rejected as error:
            raise ValueError(f"is no name of a sequence: {error.evidence}") from error

    @property
    def asked(self) -> tuple[str, str, str, str | None]:
        """What two rows must share to be the same question."""
        return self.subject, self.study, self.question.casefold(), self.sequence


def plain_answer(text: str) -> str:
    """An answer as it is compared: lower case, one space between words, no full stop at the end."""
    return " ".join(text.casefold().split()).rstrip(".").rstrip()


def read_questions(path: Path) -> tuple[Question, ...]:
    """Questions of a `.jsonl` or `.csv` file, in its order; a question that stands there twice is kept once.

    Raises:
        ValueError: the file is not there, is neither, or holds no question; a line cannot be read (the line is named,
            what it holds is not); or one question of one study has two answers.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS or not path.is_file():
        raise ValueError(f"questions: {path.name!r} is no file that ends in {' or '.join(FORMATS)}; give one")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name}: byte {error.start} is not UTF-8; save the questions as UTF-8") from None
    rows = _json_lines(text, path.name) if path.suffix.lower() == ".jsonl" else _csv_rows(text, path.name)
    found: dict[tuple[str, str, str, str | None], tuple[int, Question]] = {}
    for line, row in rows:
        question = _checked(row, f"{path.name}, line {line}")
        before, other = found.setdefault(question.asked, (line, question))
        if other.answer != question.answer:
            raise ValueError(
                f"{path.name}, line {line}: the same question about the same study as in line {before}, with another "
                "answer; keep one of them"
            )
    if not found:
        raise ValueError(f"{path.name} holds no question")
    return tuple(question for _, question in found.values())


def save_questions(path: Path, questions: Sequence[Question]) -> Path:
    """JSON lines that `read_questions` reads; atomic."""
    rows = (
        {name: value for name in Question.model_fields if (value := getattr(question, name)) is not None}
        for question in questions
    )
    write_bytes(path, "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows).encode())
    return path


def _json_lines(text: str, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise ValueError(f"{name}, line {line}: not one JSON object, such as {_EXAMPLE}")
        yield line, {key: value for key, value in row.items() if value is not None}


def _csv_rows(text: str, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    before = 1
    try:
        for row in reader:
            # A row may run over several lines; the first is named.
            line, before = before + 1, reader.line_num
            if None in row or None in row.values():
                raise ValueError(f"{name}, line {line}: not as many cells as the first line has columns")
            yield line, {key.strip(): cell for key, cell in row.items() if cell.strip()}
    except csv.Error as error:
        raise ValueError(f"{name}, line {before + 1}: {error}; is a quotation mark missing?") from None


def _checked(row: dict[str, Any], where: str) -> Question:
    try:
        return Question(**row)
    except ValidationError as error:
        # Only the name of the column and what is wrong with it: a cell may tell who it is about.
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        at = ".".join(map(str, first["loc"]))
        what = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{where}: {at + ' ' if at else ''}{what}; a question looks like {_EXAMPLE}") from None


_EXAMPLE = '{"subject": "s1", "study": "1", "question": "Is there a mass?", "answer": "yes"}'
