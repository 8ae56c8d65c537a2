"""Reading a caller's file: a regular one of bounded size, UTF-8, with tame values, or one clear sentence; writing whole
or not at all."""

from __future__ import annotations

import json
import math
import os
import secrets
import stat
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

from solver.errors import SpecError

MAX_FILE_BYTES = 16 * 2**20
"""Largest spec file; real ones have a few kilobytes."""
MAX_DEPTH = 64
"""Deepest nesting of a spec file; real ones have five levels."""
MAX_INTEGER = 2**63
TEMPORARY = ".tmp"
"""End of the names of files that are being written; only a killed process leaves one behind."""


def shown(value: object, limit: int = 60) -> str:
    """`value` as text for an error message, cut to `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def read_bytes(path: str | Path, limit: int = MAX_FILE_BYTES, error: type[SpecError] = SpecError) -> bytes:
    """Content of a regular file of at most `limit` bytes.

    Raises
    ------
    SpecError
        (or the subclass `error`) The file is missing, a folder, a device, too large or not readable.
    """
    name = shown(str(path), 200)
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise error(f"there is no file {name}") from None
    except (OSError, ValueError) as fault:
        raise error(f"{name} cannot be opened: {getattr(fault, 'strerror', None) or fault}") from fault
    if stat.S_ISDIR(mode):
        raise error(f"{name} is a folder, but a file is needed")
    if not stat.S_ISREG(mode):
        raise error(f"{name} is not a regular file")
    try:
        with open(path, "rb") as file:
            content = file.read(limit + 1)
    except OSError as fault:
        raise error(f"{name} cannot be read: {fault.strerror}") from fault
    if len(content) > limit:
        raise error(f"{name} is larger than {limit / 2**20:g} MiB, the most this package reads of such a file")
    return content


def write_whole(target: Path, pieces: Iterable[bytes], last_look: Callable[[], None] = lambda: None) -> None:
    """Write a file whole or not at all; see :func:`have_written`."""
    have_written(target, lambda file: file.writelines(pieces), last_look)


def have_written(target: Path, write: Callable[[BinaryIO], None], last_look: Callable[[], None] = lambda: None) -> None:
    """Have a file written whole or not at all: a temporary file (:data:`TEMPORARY`) takes its place at the end.

    `last_look` is called just before; what it raises leaves the target as it was.

    Raises
    ------
    OSError
        The disk refuses.
    """
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(6)}{TEMPORARY}")
    try:
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        last_look()
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def decode(content: bytes, where: str, error: type[SpecError] = SpecError) -> str:
    """UTF-8 text of `content`; a byte-order mark is dropped."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        raise error(f"{where} is not UTF-8 text: byte {fault.start} is 0x{content[fault.start]:02x}") from fault


def parse_json(text: str, where: str, error: type[SpecError] = SpecError) -> object:
    """Value of a JSON text; duplicate keys, NaN, infinities and absurd sizes are refused."""

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        table = dict(pairs)
        if len(table) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise error(f"{where}: the key {shown(twice)} is given twice in one JSON object")
        return table

    def constant(name: str) -> object:
        raise error(f"{where}: {name} is not a JSON number")

    try:
        value: object = json.loads(text, object_pairs_hook=unique, parse_constant=constant)
    except SpecError:
        raise
    except RecursionError:
        raise error(f"{where} is nested deeper than {MAX_DEPTH} levels") from None
    except json.JSONDecodeError as fault:
        raise error(f"{where} is not JSON: {fault.msg} in line {fault.lineno}, column {fault.colno}") from fault
    except ValueError as fault:
        raise error(f"{where} is not JSON that can be read: a number has too many digits") from fault
    return _tame(value, where, error)


def parse_toml(text: str, where: str, error: type[SpecError] = SpecError) -> dict[str, object]:
    """Tables of a TOML text; absurd numbers and nesting are refused."""
    try:
        table: dict[str, object] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as fault:
        raise error(f"{where} is not TOML: {fault}") from fault
    except RecursionError:
        raise error(f"{where} is nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as fault:
        raise error(f"{where} is not TOML that can be read: {shown(str(fault), 100)}") from fault
    _tame(table, where, error)
    return table


def _tame(value: object, where: str, error: type[SpecError]) -> object:
    """`value` itself, once its nesting and numbers are known to be harmless to print and to compute with."""
    pending: list[tuple[object, int]] = [(value, 0)]
    while pending:
        item, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise error(f"{where} is nested deeper than {MAX_DEPTH} levels")
        if isinstance(item, dict):
            pending.extend((child, depth + 1) for child in item.values())
        elif isinstance(item, list):
            pending.extend((child, depth + 1) for child in item)
        elif isinstance(item, int) and abs(item) > MAX_INTEGER:
            raise error(f"{where} has a whole number beyond 2^63 ({item.bit_length()} bits)")
        elif isinstance(item, float) and not math.isfinite(item):
            raise error(f"{where} has a number that is not finite: {item}")
    return value
