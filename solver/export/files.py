"""Texts that targets write: shell scripts with quoted words, block YAML, and the record of one file."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

Yaml = str | int | float | bool | None | Mapping[str, "Yaml"] | Mapping[int, "Yaml"] | Sequence["Yaml"]


@dataclass(frozen=True)
class ExportFile:
    """One file of an export: its path below the folder, its text, and whether it is a program."""

    path: str
    text: str
    executable: bool = False


@dataclass(frozen=True)
class Command:
    """One process that a node starts: what it is told by environment and by arguments."""

    node: int
    replica: int
    env: tuple[tuple[str, str], ...]
    argv: tuple[str, ...]

    def line(self) -> str:
        """The command as one shell line, every word quoted."""
        words = [f"{name}={shlex.quote(value)}" for name, value in self.env]
        return " ".join([*(["env", *words] if words else []), shlex.join(self.argv)])

    def pretty(self) -> str:
        """The command over several lines, an option and its value on each."""
        lines = [f"env {name}={shlex.quote(value)}" if i == 0 else f"{name}={shlex.quote(value)}"
                 for i, (name, value) in enumerate(self.env)]  # fmt: skip
        words: list[str] = []
        for word in self.argv:
            if word.startswith("-") and words:
                lines.append(shlex.join(words))
                words = []
            words.append(word)
        lines.append(shlex.join(words))
        return " \\\n    ".join(lines)


def flags(options: Iterable[tuple[str, str | int | float | bool | None]]) -> list[str]:
    """Command-line words of (flag, value): True gives the flag alone, None and False nothing."""
    words: list[str] = []
    for flag, value in options:
        if value is None or value is False:
            continue
        words += [flag] if value is True else [flag, str(value)]
    return words


def node_script(origin: str, what: str, commands: Sequence[Command]) -> str:
    """A script that starts the commands of one node and ends when they end (all are ended when one fails)."""
    head = f'#!/usr/bin/env bash\n# {origin}\n# {what}\nset -euo pipefail\ncd "$(dirname "$0")"\n'
    if len(commands) == 1:
        return f"{head}exec {commands[0].pretty()}\n"
    started = "".join(f"{command.pretty()} &\n" for command in commands)
    return f"{head}trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n{started}wait -n\n"


def comment_head(origin: str, *lines: str) -> str:
    """First lines of a file whose comments begin with ``#``."""
    return "".join(f"# {line}\n" for line in (origin, *lines))


def yaml_text(value: Yaml, indent: int = 0) -> str:
    """Block YAML of plain data; texts are double-quoted as in JSON, lists of numbers stay on one line."""
    pad = "  " * indent
    if isinstance(value, Mapping):
        lines = []
        for key, item in value.items():
            name = key if isinstance(key, int) or key.replace("_", "").replace("-", "").isalnum() else json.dumps(key)
            lines.append(f"{pad}{name}:{_inline_or_block(item, indent)}")
        return "\n".join(lines)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "\n".join(_item(item, indent) for item in value)
    return pad + json.dumps(value)


def _inline_or_block(item: Yaml, indent: int) -> str:
    if isinstance(item, Mapping) and item:
        return "\n" + yaml_text(item, indent + 1)
    if isinstance(item, Sequence) and not isinstance(item, str) and any(not isinstance(x, int | float) for x in item):
        return "\n" + yaml_text(item, indent + 1)
    return " " + json.dumps(item)


def _item(item: Yaml, indent: int) -> str:
    pad = "  " * indent
    if isinstance(item, Mapping) and item:
        return f"{pad}- {yaml_text(item, indent + 1).lstrip()}"
    return f"{pad}- {json.dumps(item)}"


def listens(port: int) -> list[str]:
    """Where a router listens, in the words of vLLM's and of SGLang's."""
    return flags([("--host", "0.0.0.0"), ("--port", port)])
