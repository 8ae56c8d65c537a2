"""Whole deployments: time to the proof, what mixing sizes gains, and the peer beside it where it is installed.

    python benchmarks/deployments.py            # time to the proof on 64, 256 and 2048 GPUs, medians of five
    python benchmarks/deployments.py --mixes    # the best mix against the best single size on 35 cluster sizes
    python benchmarks/deployments.py --peer /path/to/aiconfigurator

Both modes are compared and the better one proved (``deploy --mode auto``). The peer is the command line of the package
``aiconfigurator``; it is run in the same process order on the same question, and left out with a sentence otherwise.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time

QUESTION = ["--model", "deepseek-v3", "--workload", "batch", "--isl", "4096", "--osl", "512"]
LIMITS = ["--slo-ttft", "2 s", "--slo-tpot", "50 ms"]
BARS = {64: 5.0, 256: 10.0, 2048: 20.0}
"""GPUs -> seconds of the whole command."""
MIXED = [
    8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 96, 104, 120, 128, 136, 152, 168, 192, 200, 232, 256, 296, 328, 384, 424,
    512, 600, 680, 768, 904, 1024, 1240, 1536, 1800, 2048,
]  # fmt: skip
"""35 cluster sizes."""


def deploy(gpus: int, *more: str) -> tuple[float, dict[str, object]]:
    """Seconds of the whole command, and the deployment document."""
    command = [sys.executable, "-m", "solver", "deploy", *QUESTION, *LIMITS, "--cluster", f"h200x{gpus}", "--json"]
    begun = time.perf_counter()
    run = subprocess.run([*command, "--no-progress", *more], capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - begun
    if run.returncode not in (0, 4):
        raise SystemExit(f"deploy on {gpus} GPUs: exit {run.returncode}: {run.stderr or run.stdout}")
    return seconds, json.loads(run.stdout)


def ask_peer(peer: str, gpus: int) -> float | None:
    """Seconds of the peer's command on the same question; None where it fails."""
    command = [peer, "cli", "default", "--model-path", "deepseek-ai/DeepSeek-V3", "--system", "h200_sxm"]
    command += ["--total-gpus", str(gpus), "--isl", "4096", "--osl", "512", "--ttft", "2000", "--tpot", "50"]
    begun = time.perf_counter()
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - begun
    if run.returncode:
        print(f"  the peer fails: {(run.stderr or run.stdout).strip().splitlines()[-1:]}", file=sys.stderr)
        return None
    return seconds


def times(repeats: int, peer: str | None) -> None:
    """The table of the bars."""
    print("| GPUs | mode | requests/s | status | median s | bar s | peer s | times faster |")
    print("|---|---|---|---|---|---|---|---|")
    for gpus, bar in BARS.items():
        runs = [deploy(gpus) for _ in range(repeats)]
        median, plan = statistics.median(seconds for seconds, _ in runs), runs[0][1]
        theirs = ask_peer(peer, gpus) if peer else None
        metrics = plan["metrics"]
        assert isinstance(metrics, dict)
        ratio = f"{theirs:.1f} | {theirs / median:.1f}" if theirs else "- | -"
        row = f"{gpus} | {plan['mode']} | {metrics['requests_per_s']:.2f} | {plan['status']}"
        print(f"| {row} | {median:.2f} | {bar:g} | {ratio} |", flush=True)


def mixes(mode: str) -> None:
    """Requests per second of the best mix and of the best single size (one per pool), both proved."""
    print(f"| GPUs | mix of sizes ({mode}) | requests/s | one size per pool | requests/s | gain | status |")
    print("|---|---|---|---|---|---|---|")
    gains = []
    for gpus in MIXED:
        found = [deploy(gpus, "--mode", mode, *more)[1] for more in ((), ("--max-shapes", "1"))]
        cells, rates, states = [], [], []
        for plan in found:
            groups, metrics = plan["groups"], plan["metrics"]
            assert isinstance(groups, list)
            assert isinstance(metrics, dict)
            words = " + ".join(f"{g['count']} {g['size']['role'][0].upper()}{g['size']['gpus']}" for g in groups)
            rates.append(metrics["rate_nhz"])
            cells.append(f"{words} | {metrics['requests_per_s']:.3f}")
            states.append(str(plan["status"]))
        gains.append(rates[0] / rates[1] - 1)
        print(
            f"| {gpus} | {cells[0]} | {cells[1]} | {gains[-1]:+.2%} | {', '.join(dict.fromkeys(states))} |", flush=True
        )
    better = sum(gain > 0 for gain in gains)
    print(
        f"\nnever worse: {min(gains) >= 0}; better on {better} of {len(gains)}; mean gain {statistics.mean(gains):+.2%}"
    )


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mixes", choices=["auto", "aggregated", "disaggregated"], nargs="?", const="auto")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peer", default=shutil.which("aiconfigurator"), help="aiconfigurator's executable")
    options = parser.parse_args()
    if options.mixes:
        mixes(options.mixes)
        return
    if options.peer is None:
        print("aiconfigurator is not installed: its times are missing (pip install aiconfigurator)", file=sys.stderr)
    times(options.repeats, options.peer)


if __name__ == "__main__":
    main()
