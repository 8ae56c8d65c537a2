"""Commands that measure a deployed plan with the engine's own serving benchmark, and turn the result into a CSV row.

The row has the columns that ``calibrate`` reads: LLM, system, engine, precision, request lengths, concurrency, degrees,
TTFT and TPOT; kept drafts and the wait for admission are those that the workload declares. Prompt and output lengths
are exact (range ratio 0 for vLLM and 1 for SGLang: either means "always this length"), and all prompts share as many
first tokens as the workload finds in the prefix cache, so that the measured point is the planned one.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from solver.errors import ExportError
from solver.export.deployment import Deployment, Pool
from solver.export.files import ExportFile, comment_head
from solver.strategy import new_prompt_tokens

COLUMNS = (
    "id", "llm", "system", "engine", "precision", "isl", "osl", "concurrency", "attn_tp", "attn_dp", "moe_tp", "moe_ep",
    "pp", "gpus", "speculative_draft", "speculative_accepted", "admission_steps",
    "prefix_hit_rate", "measured_ttft_ms", "measured_tpot_ms", "measured_tokens_per_s",
)  # fmt: skip
ROUNDS = 8
"""Requests per concurrent slot: enough that ramp-up and drain weigh little."""
RESULT = "result.json"
COLLECT = '''"""Append one measured row to a CSV file. usage: collect.py RESULT.json OUT.csv"""

import csv
import json
import sys
import time
from pathlib import Path

COLUMNS = {columns}
PLANNED = {planned}
# names of the same figure in the engines' result files, milliseconds (tokens/s for the last)
KEYS = {{
    "measured_ttft_ms": ("mean_ttft_ms",),
    "measured_tpot_ms": ("mean_tpot_ms",),
    "measured_tokens_per_s": ("output_throughput",),
}}


def main() -> None:
    """Read the last result, write the header once, append the row."""
    lines = [line for line in Path(sys.argv[1]).read_text().splitlines() if line.strip()]
    try:
        result = json.loads("\\n".join(lines))
    except json.JSONDecodeError:
        result = json.loads(lines[-1])  # one JSON object a line: the last run
    row = dict(PLANNED, id=f"{{PLANNED['id']}}-{{time.time_ns()}}")
    for column, names in KEYS.items():
        found = [result[name] for name in names if name in result]
        if not found:
            raise SystemExit(f"{{sys.argv[1]}}: none of {{names}} in the result")
        row[column] = found[0]
    out = Path(sys.argv[2])
    new = not out.exists() or not out.stat().st_size
    if not new and out.read_text().splitlines()[:1] != [",".join(COLUMNS)]:
        raise SystemExit(f"{{out}} has other columns than {{', '.join(COLUMNS)}}; give another file")
    with out.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(row)


main()
'''


_Options = dict[str, str | int]


@dataclass(frozen=True)
class _Point:
    """What is measured, in tokens and requests."""

    prompt: int
    new: int
    """Tokens of a prompt that are not in the prefix cache."""
    output: int
    concurrency: int

    @property
    def shared(self) -> int:
        """First tokens that all prompts have in common."""
        return self.prompt - self.new

    @property
    def sentence(self) -> str:
        """The same in words."""
        common = f" ({self.shared} of them in common)" if self.shared else ""
        return f"{self.prompt} tokens in{common}, {self.output} out, {self.concurrency} at a time"


def bench_files(deployment: Deployment) -> list[ExportFile]:
    """``bench.sh`` and ``collect.py``.

    Raises
    ------
    ExportError
        The plan's engine has no serving benchmark.
    """
    pool, instance = deployment.pool, deployment.instances[0]
    workload, strategy = pool.problem.workload, pool.strategy
    speculative = workload.speculative
    slots = strategy.attn_dp * pool.sequences_per_rank
    concurrency = slots if workload.concurrency is None else -(-workload.concurrency // strategy.replicas)
    address = (deployment.lead(instance), deployment.port_of(instance))
    point = _Point(workload.mean_isl, new_prompt_tokens(pool.problem), workload.osl, concurrency)
    command = shlex.join(_command(deployment, address, point))
    head = comment_head(
        deployment.origin,
        f"measures replica 0 at {address[0]}:{address[1]}: {point.sentence}",
        "usage: bench.sh [OUT.csv]; the row is for: solver calibrate",
    )
    script = (
        f"#!/usr/bin/env bash\n{head}set -euo pipefail\n"
        'out="$(realpath "${1:-measured.csv}")"\ncd "$(dirname "$0")"\n'
        f'rm -f {RESULT}\n{command}\nexec python3 collect.py {RESULT} "$out"\n'
    )
    planned = {
        "id": f"plan-{deployment.short_digest}",
        "llm": pool.problem.llm.name,
        "system": re.sub(r"x\d+$", "", pool.problem.cluster.name),
        "engine": deployment.engine,
        "precision": _precision(pool),
        **{name: getattr(strategy, name) for name in ("attn_tp", "attn_dp", "moe_tp", "moe_ep", "pp")},
        "gpus": strategy.instance_gpus,
        "isl": point.prompt,
        "osl": point.output,
        "concurrency": point.concurrency,
        "speculative_draft": "" if speculative is None else speculative.draft,
        "speculative_accepted": "" if speculative is None else speculative.accepted,
        "admission_steps": workload.admission_steps or "",
        "prefix_hit_rate": workload.prefix_hit_rate or "",
    }
    collect = COLLECT.format(columns=COLUMNS, planned=planned)
    return [
        ExportFile("bench.sh", script, executable=True),
        ExportFile("collect.py", f"# {deployment.origin}\n{collect}"),
    ]


def _precision(pool: Pool) -> str:
    """The format of most weights: the experts' where there are any, else the dense layers'."""
    dtypes = pool.problem.llm.dtypes
    return dtypes.experts if pool.problem.llm.is_moe else dtypes.dense


def _command(deployment: Deployment, address: tuple[str, int], point: _Point) -> list[str]:
    """The engine's benchmark; SGLang's speaks to TensorRT-LLM's OpenAI interface, too."""
    host, port = address
    prompts = ROUNDS * point.concurrency
    load: _Options = {"max-concurrency": point.concurrency, "num-prompts": prompts}
    exact: _Options = {"dataset-name": "random", "random-input-len": point.new, "random-output-len": point.output}
    if deployment.engine == "vllm":
        # The prefix comes on top of the random input; it is the same for all prompts.
        cached: _Options = {"random-prefix-len": point.shared} if point.shared else {}
        options = {**exact, **cached, "random-range-ratio": 0, **load, "result-filename": RESULT}
        start = ["vllm", "bench", "serve", "--host", host, "--port", str(port), "--model", deployment.weights]
        return [*start, "--ignore-eos", "--save-result", *_spelt(options)]
    if deployment.engine in ("sglang", "trtllm"):
        backend = "sglang" if deployment.engine == "sglang" else "sglang-oai"
        grouped: _Options = {
            "dataset-name": "generated-shared-prefix", "gsp-num-groups": 1, "gsp-prompts-per-group": prompts,
            "gsp-system-prompt-len": point.shared, "gsp-question-len": point.new, "gsp-output-len": point.output,
        }  # fmt: skip
        data = grouped if point.shared else {**exact, "random-range-ratio": 1}
        start = ["python3", "-m", "sglang.benchmark.serving", "--backend", backend, "--host", host, "--port", str(port)]
        return [*start, "--model", deployment.weights, *_spelt({**data, **load, "output-file": RESULT})]
    raise ExportError(
        f"engine {deployment.engine!r} has no serving benchmark; solve with --engine vllm, sglang or trtllm"
    )


def _spelt(options: _Options) -> list[str]:
    """Options as a command takes them."""
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]
