"""Files of the command line: reading (``-`` is stdin) and writing whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

from solver.errors import OutputError, SpecError

STANDARD = "-"
"""Name of stdin and stdout."""


def read_text(path: str, limit: int) -> str:
    """UTF-8 text of a file or of stdin, at most `limit` bytes.

    Raises
    ------
    SpecError
        Missing, a folder, too large, or no UTF-8.
    """
    from solver.specs.files import decode, read_bytes

    if path != STANDARD:
        return decode(read_bytes(path, limit), path)
    content = sys.stdin.buffer.read(limit + 1)
    if len(content) > limit:
        raise SpecError(f"stdin has more than {limit / 2**20:g} MiB, the most this package reads of such a file")
    return decode(content, "stdin")


def check_out(path: str | None, *, force: bool) -> None:
    """Refuse a file that could not be written, before any work is done for it.

    Raises
    ------
    OutputError
        It exists (and `force` is not given), is no regular file, or its folder is missing or not writable.
    """
    if path is None or path == STANDARD:
        return
    target = Path(path)
    try:
        folder = target.resolve().parent
        if not path:
            raise OutputError("--out '': give the name of a file")
        if target.is_dir():
            raise OutputError(f"--out {path!r} is a folder, but a file is needed")
        if target.exists() and not target.is_file():
            raise OutputError(f"--out {path!r} is not a regular file")
        if target.exists() and not force:
            raise OutputError(f"--out {path!r} exists already; give --force to replace it")
        if not folder.is_dir():
            raise OutputError(f"--out {path!r}: there is no folder {str(folder)!r}")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise OutputError(f"--out {path!r}: the folder {str(folder)!r} is not writable")
    except (OSError, ValueError, RuntimeError) as fault:
        raise OutputError(
            f"--out {path[:200]!r} cannot be used: {getattr(fault, 'strerror', None) or fault}"
        ) from fault


def write_out(path: str, pieces: Iterable[str], *, force: bool) -> None:
    """Write text to a file, whole or not at all: a temporary file in the same folder takes its place at the end.

    Raises
    ------
    OutputError
        As :func:`check_out`, or the disk refuses.
    """
    if path == STANDARD:
        for piece in pieces:
            sys.stdout.write(piece)
        return
    write_binary(path, lambda file: file.writelines(piece.encode() for piece in pieces), force=force)


def write_bytes(path: str, pieces: Iterable[bytes], *, force: bool) -> None:
    """The same for bytes."""
    write_binary(path, lambda file: file.writelines(pieces), force=force)


def write_binary(path: str, write: Callable[[BinaryIO], None], *, force: bool) -> None:
    """Have a file written, whole or not at all, as :func:`write_out` does.

    Raises
    ------
    OutputError
        As :func:`check_out`, or the disk refuses.
    """
    if path == STANDARD:
        write(sys.stdout.buffer)
        return
    check_out(path, force=force)
    try:
        from solver.specs.files import have_written

        have_written(Path(path).resolve(), write, lambda: check_out(path, force=force))
    except OSError as fault:
        raise OutputError(f"--out {path!r} cannot be written: {fault.strerror or fault}") from fault


def check_folder(path: str, *, force: bool) -> None:
    """Refuse a folder that could not be written, before any work is done for it.

    Raises
    ------
    OutputError
        It exists and is not empty (and `force` is not given), is no folder, or its parent is missing or not writable.
    """
    target = Path(path)
    try:
        if not path:
            raise OutputError("--out '': give the name of a folder")
        if target.exists() and not target.is_dir():
            raise OutputError(f"--out {path!r} is not a folder")
        if target.is_dir() and any(target.iterdir()) and not force:
            raise OutputError(f"--out {path!r} exists already; give --force to replace it")
        parent = target.resolve().parent
        if not parent.is_dir():
            raise OutputError(f"--out {path!r}: there is no folder {str(parent)!r}")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise OutputError(f"--out {path!r}: the folder {str(parent)!r} is not writable")
    except (OSError, ValueError, RuntimeError) as fault:
        raise OutputError(
            f"--out {path[:200]!r} cannot be used: {getattr(fault, 'strerror', None) or fault}"
        ) from fault


def write_folder(path: str, files: Iterable[tuple[str, str, bool]], *, force: bool) -> None:
    """Write a folder of (name, text, executable), whole or not at all: a temporary folder takes its place at the end.

    An existing folder is replaced (with `force`) only if every file in it is one that an export wrote: it must hold a
    README.md. The current folder and its parents are never replaced.

    Raises
    ------
    OutputError
        As :func:`check_folder`, or the disk refuses.
    """
    check_folder(path, force=force)
    target = Path(path).resolve()
    foreign = not (target / "README.md").is_file() or target in (Path.cwd(), *Path.cwd().parents)
    if foreign and target.is_dir() and any(target.iterdir()):
        raise OutputError(f"--out {path!r} does not look like an export (it has no README.md); name another folder")
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(6)}.tmp")
    replaced = target.with_name(f".{target.name[:100]}.{secrets.token_hex(6)}.old")
    try:
        try:
            for name, text, executable in files:
                file = temporary / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, encoding="utf-8", newline="\n")
                if executable:
                    file.chmod(0o755)
            if target.exists():
                target.rename(replaced)
            temporary.rename(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(replaced, ignore_errors=True)
    except OSError as fault:
        raise OutputError(f"--out {path!r} cannot be written: {fault.strerror or fault}") from fault
