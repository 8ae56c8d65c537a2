"""Names that people give an LLM (``nvidia/Llama-3.3-70B-Instruct-FP8``) -> the catalog entry, and the format they say.

Rule: the organisation before the slash, case and a leading ``Meta-`` mean nothing. If what is left is no entry and no
alias of one, its last part is dropped and the rest looked up again, as long as that part says how the weights are
stored (``-FP8``, ``-NVFP4``, ``-AWQ``, ...), how the network was tuned (``-Instruct``, ``-Chat``, ``-Base``) or when
(``-2507``). So the longest known name wins, and an alias says what differs in more than that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

MAX_NAME = 200

_STORAGE = (
    r"[-_.](?P<format>nvfp4|mxfp4|fp4|fp8|int8|int4|w4a16|w8a8|w8a16|awq|gptq|bf16|fp16)"
    r"(?:[-_](?:dynamic|static|block|kv|marlin|g[0-9]+|v[0-9]+))*"
)
_VARIANT = r"[-_.](?:instruct|base|chat|it|hf|quantized|[0-9]{4})"
_LAST_PART = re.compile(rf"(?:{_STORAGE}|{_VARIANT})$")


@dataclass(frozen=True)
class Named:
    """What a name says: the catalog entry, and the storage format where the name states another one."""

    entry: str
    precision: str | None = None


def plain(name: str) -> str:
    """A name without organisation, case and the prefix ``Meta-``."""
    return name.strip().lower().rpartition("/")[2].removeprefix("meta-")


def find(name: str, entries: Mapping[str, str]) -> Named | None:
    """The entry that a name means; None when it means none.

    Parameters
    ----------
    name : ``organisation/name`` as on the Hugging Face Hub, or the name alone; a deeper path means nothing
    entries : entry of every plain spelling
    """
    if len(name) > MAX_NAME or name.count("/") > 1:
        return None
    word = plain(name)
    precision = None
    while word not in entries:
        part = _LAST_PART.search(word)
        if part is None:
            return None
        precision = precision or part["format"]
        word = word[: part.start()]
    return Named(entries[word], precision)
