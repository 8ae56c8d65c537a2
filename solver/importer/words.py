"""A command line as options, by the flags that an engine's parser knows."""

from __future__ import annotations

import difflib
import json
import re
import shlex
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

from solver.errors import ImportCommandError
from solver.importer.launch import MAX_DEGREE
from solver.specs.files import parse_json, shown

MAX_COMMAND_CHARACTERS = 2**16
SHELL = re.compile(r"[`]|\$\(|^[;&|<>]|[;&|]$|^\d?>|\n")
"""Signs of a shell program rather than one plain command."""
ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
Arity = Literal["none", "one", "optional", "many"]


@dataclass(frozen=True)
class Options:
    """Options of one command: environment, positional words, values by flag (as first spelt in the parser's list)."""

    where: str
    env: dict[str, str]
    words: tuple[str, ...]
    values: dict[str, tuple[str, ...]]

    def has(self, *names: str) -> bool:
        """Whether any of these flags is given."""
        return any(name in self.values for name in names)

    def text(self, *names: str) -> str | None:
        """Value of the first of these flags that is given."""
        found = next((self.values[name] for name in names if name in self.values), None)
        return found[-1] if found else None

    def number(self, *names: str, default: int = 1) -> int:
        """Whole number of the first of these flags that is given.

        Raises
        ------
        ImportCommandError
            It is no whole number from 1 to 65536 (0 where the default is 0).
        """
        text = self.text(*names)
        if text is None:
            return default
        return whole_number(text, f"{self.where}: {names[0]}", least=min(1, default))


def whole_number(text: str, where: str, *, least: int) -> int:
    """A whole number of a text, within bounds.

    Raises
    ------
    ImportCommandError
        It is none.
    """
    if not re.fullmatch(r"[0-9]{1,9}", text.strip()) or not least <= int(text) <= MAX_DEGREE:
        raise ImportCommandError(f"{where} {shown(text)}: give a whole number from {least} to {MAX_DEGREE}")
    return int(text)


@cache
def flag_arities(engine: str) -> dict[str, Arity]:
    """Flag -> how many values it takes, of the engine's own parser."""
    text = resources.files("solver.importer").joinpath(f"{engine}.json").read_text(encoding="utf-8")
    table = json.loads(text)
    kinds: tuple[Arity, ...] = ("none", "one", "optional", "many")
    return {flag: kind for kind in kinds for flag in table.get(kind, ())}


def read_options(command: str, engine: str) -> Options:
    """Split a command and name its options.

    Raises
    ------
    ImportCommandError
        Not one plain command, an unknown flag, or a flag without its value.
    """
    where = f"the {engine} command"
    if len(command) > MAX_COMMAND_CHARACTERS:
        raise ImportCommandError(f"{where} has {len(command)} characters, more than {MAX_COMMAND_CHARACTERS}")
    joined = re.sub(r"\\\r?\n", " ", command).strip()
    if "\0" in joined:
        raise ImportCommandError(f"{where} holds a zero byte")
    try:
        words = shlex.split(joined)
    except ValueError as error:
        raise ImportCommandError(f"{where} cannot be split into words: {str(error).lower()}") from error
    for word in words:
        if SHELL.search(word):
            raise ImportCommandError(f"{where} holds shell syntax ({shown(word)}); give one plain command")
    words = words[1:] if words[:1] == ["env"] else words
    env: dict[str, str] = {}
    while words and ASSIGNMENT.match(words[0]):
        name, _, value = words.pop(0).partition("=")
        env[name] = value
    return _sorted(where, env, words, flag_arities(engine))


def plain_program(command: str, module: str, program: str) -> str:
    """The command with ``python -m MODULE`` written as the program of the same meaning."""
    begin = rf"^((?:\s*(?:env\s+)?[A-Za-z_]\w*=\S*)*)\s*\S*python[\d.]*\s+-m\s+{re.escape(module)}(?=\s|$)"
    return re.sub(begin, rf"\1 {program}", command[: MAX_COMMAND_CHARACTERS + 1])


def _full_name(flag: str, arities: dict[str, Arity]) -> str:
    """The flag itself, or the only one that it begins (as the engines' parsers read abbreviations)."""
    begun = [name for name in arities if name.startswith(flag)] if flag.startswith("--") and flag not in arities else []
    return begun[0] if len(begun) == 1 else flag


def _sorted(where: str, env: dict[str, str], words: list[str], arities: dict[str, Arity]) -> Options:
    """Positional words and values by flag."""
    plain: list[str] = []
    values: dict[str, tuple[str, ...]] = {}
    at = 0
    while at < len(words):
        word = words[at]
        at += 1
        if not re.match(r"--?[A-Za-z]", word):
            plain.append(word)
            continue
        flag, equals, attached = word.partition("=")
        flag, dot, key = flag.partition(".")
        flag = flag.replace("_", "-") if flag.startswith("--") else flag
        flag = _full_name(flag, arities)
        if flag not in arities:
            near = difflib.get_close_matches(flag, arities, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ImportCommandError(f"{where}: unknown flag {shown(flag)}{hint}")
        given = [attached] if equals else []
        limit = {"none": 0, "one": 1, "optional": 1, "many": len(words)}[arities[flag]] if not dot else 1
        while not equals and at < len(words) and len(given) < limit and not re.match(r"--?[A-Za-z]", words[at]):
            given.append(words[at])
            at += 1
        if arities[flag] == "one" and not given:
            raise ImportCommandError(f"{where}: {flag} lacks its value")
        values[f"{flag}.{key}" if dot else flag] = tuple(given)
    return Options(where, env, tuple(plain), values)


def json_table(text: str, where: str) -> dict[str, object]:
    """A JSON object of a flag's value.

    Raises
    ------
    ImportCommandError
        It is none.
    """
    value = parse_json(text, where)
    if not isinstance(value, dict):
        raise ImportCommandError(f"{where}: {shown(text)} is not a JSON object")
    return value
