"""Launch commands and files that people already run, read as degrees. Nothing is ever executed.

The text is split as a shell would split it and compared with the list of flags of the engine's own parser; whatever is
not one plain command with known flags is refused with one sentence.
"""

from __future__ import annotations

from solver.importer.launch import Launch
from solver.importer.sglang import read_sglang
from solver.importer.trtllm import read_trtllm
from solver.importer.vllm import read_vllm

__all__ = ["Launch", "read_sglang", "read_trtllm", "read_vllm"]
