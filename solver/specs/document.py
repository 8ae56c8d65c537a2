"""Documents: records that are written as JSON files and read again."""

from __future__ import annotations

import hashlib
import json
from typing import ClassVar, Self

from pydantic import ValidationError

from solver.errors import PlanError
from solver.specs.spec import Spec, one_sentence

MAX_DOCUMENT_BYTES = 256 * 2**20


class Document(Spec):
    """A record that :meth:`parse` reads."""

    noun: ClassVar[str]
    """What it is, with its article."""

    @classmethod
    def parse(cls, text: str | bytes, where: str | None = None) -> Self:
        """Read a document.

        Parameters
        ----------
        text : JSON
        where : names the file for the error message

        Raises
        ------
        PlanError
            Not JSON, not this schema, nested too deeply, or too large; one sentence.
        """
        where = where or cls.noun.split(" ", 1)[1]
        if len(text) > MAX_DOCUMENT_BYTES:
            raise PlanError(f"{where}: {len(text)} bytes exceed the limit of {MAX_DOCUMENT_BYTES} for {cls.noun}")
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise PlanError(f"{where}: {one_sentence(error)}") from error
        except RecursionError as error:
            raise PlanError(f"{where}: nested too deeply to be {cls.noun}") from error

    @property
    def digest(self) -> str:
        """SHA-256 of the document in its compact JSON form: equal for equal ones however the file is laid out."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def kind_of(text: str) -> str | None:
    """What a JSON text says that it is; None where it does not say, as plans do not, or is nothing to be read."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    kind = document.get("kind") if isinstance(document, dict) else None
    return kind if isinstance(kind, str) else None
