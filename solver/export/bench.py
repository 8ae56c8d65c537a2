"""Commands that measure a deployed plan with the engine's own serving benchmark, and turn the result into a CSV row.

The row has the columns that ``calibrate`` reads: LLM, system, engine, precision, request lengths, concurrency, degrees,
TTFT and TPOT; kept drafts and the wait for admission are those that the workload declares. Prompt and output lengths
are exact (range ratio 0 for vLLM and 1 for SGLang: either means "always this length"), so that the measured point is
the planned one.
"""

from __future__ import annotations

import re
import shlex

from solver.errors import ExportError
from solver.export.deployment import Deployment, Pool
from solver.export.files import ExportFile, comment_head

COLUMNS = (
    "id", "llm", "system", "engine", "precision", "isl", "osl", "concurrency", "attn_tp", "attn_dp", "moe_tp", "moe_ep",
    "pp", "gpus", "speculative_draft", "speculative_accepted", "admission_steps",
    "measured_ttft_ms", "measured_tpot_ms", "measured_tokens_per_s",
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
    new = not out.exists()
    if not new and out.read_text().splitlines()[:1] != [",".join(COLUMNS)]:
        raise SystemExit(f"{{out}} has other columns than {{', '.join(COLUMNS)}}; give another file")
    with out.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(row)


main()
'''


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
    sizes = (workload.mean_isl, workload.osl, concurrency)
    command = shlex.join(_command(deployment, address, sizes))
    head = comment_head(
        deployment.origin,
        f"measures replica 0 at {address[0]}:{address[1]}: {sizes[0]} tokens in, {sizes[1]} out, {sizes[2]} at a time",
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
        "isl": sizes[0],
        "osl": sizes[1],
        "concurrency": sizes[2],
        "speculative_draft": "" if speculative is None else speculative.draft,
        "speculative_accepted": "" if speculative is None else speculative.accepted,
        "admission_steps": workload.admission_steps or "",
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


def _command(deployment: Deployment, address: tuple[str, int], sizes: tuple[int, int, int]) -> list[str]:
    """The engine's benchmark; SGLang's speaks to TensorRT-LLM's OpenAI interface, too."""
    host, port = address
    isl, osl, concurrency = sizes
    prompts = str(ROUNDS * concurrency)
    if deployment.engine == "vllm":
        return [
            "vllm", "bench", "serve", "--host", host, "--port", str(port), "--model", deployment.weights,
            "--dataset-name", "random", "--random-input-len", str(isl), "--random-output-len", str(osl),
            "--random-range-ratio", "0", "--ignore-eos", "--max-concurrency", str(concurrency),
            "--num-prompts", prompts, "--save-result", "--result-filename", RESULT,
        ]  # fmt: skip
    if deployment.engine in ("sglang", "trtllm"):
        backend = "sglang" if deployment.engine == "sglang" else "sglang-oai"
        return [
            "python3", "-m", "sglang.benchmark.serving", "--backend", backend, "--host", host, "--port", str(port),
            "--model", deployment.weights, "--dataset-name", "random", "--random-input-len", str(isl),
            "--random-output-len", str(osl), "--random-range-ratio", "1", "--max-concurrency", str(concurrency),
            "--num-prompts", prompts, "--output-file", RESULT,
        ]  # fmt: skip
    raise ExportError(
        f"engine {deployment.engine!r} has no serving benchmark; solve with --engine vllm, sglang or trtllm"
    )
