"""The base of every record: frozen, closed, and with errors of one sentence."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from solver.errors import SpecError


class Spec(BaseModel):
    """A frozen record. Unknown keys are refused; :meth:`read` turns every fault into one :class:`SpecError`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def read(cls, data: object, where: str) -> Self:
        """Validate parsed file content; `where` names the file for the error message."""
        if not isinstance(data, Mapping):
            raise SpecError(f"{where}: expected a table of keys for {cls.__name__}, got {type(data).__name__}")
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise SpecError(f"{where}: {one_sentence(error)}") from error


_NUMBERS = re.compile(r"\[\n\s+(-?[\d.e+-]+(?:,\n\s+-?[\d.e+-]+)*)\n\s+\]")


def document_text(record: BaseModel) -> str:
    """A record as indented JSON for people, with lists of numbers on one line each."""
    text = record.model_dump_json(indent=2)
    # A line break inside a JSON string is written as an escape, so these are lists and never part of a text.
    return _NUMBERS.sub(
        lambda found: "[" + ", ".join(found[1].replace("\n", "").replace(" ", "").split(",")) + "]", text
    )


def one_sentence(error: ValidationError) -> str:
    """The first faults of a validation error as one line: key, what is wrong, what was given."""
    parts = []
    faults = error.errors(include_url=False)
    for fault in faults[:3]:
        key = ".".join(str(part) for part in fault["loc"])
        text = fault["msg"].removeprefix("Value error, ")
        given = fault.get("input")
        if fault["type"] == "missing":
            parts.append(f"the key {key!r} is missing")
        elif fault["type"] == "extra_forbidden":
            parts.append(f"the key {key!r} is unknown")
        elif fault["type"] == "json_invalid":
            reason = text.removeprefix("Invalid JSON: ")
            parts.append(f"this is no JSON ({reason}); give a document as this program writes it")
        else:
            if fault["type"] != "value_error":
                shown = repr(given)
                text += f", got {shown if len(shown) <= 60 else shown[:57] + '...'}"
            parts.append(f"{key}: {text}" if key else text)
    more = f" (and {len(faults) - 3} more faults)" if len(faults) > 3 else ""
    return "; ".join(parts) + more
