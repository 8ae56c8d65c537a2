"""Where an engine finds an LLM's weights when the caller does not say."""

from __future__ import annotations

import re

from solver.specs.llm import Llm

_HUGGING_FACE = re.compile(r"https://huggingface\.co/([\w.-]+/[\w.-]+)(?:/|$)")


def weights_of(llm: Llm) -> str:
    """The Hugging Face name in the LLM's source, else its own name."""
    found = _HUGGING_FACE.match(llm.source)
    return found[1] if found else llm.name
