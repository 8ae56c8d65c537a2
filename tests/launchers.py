"""Who runs where, read out of exported files by each launcher's own rank arithmetic; and what the plan says.

Nothing here uses the exporter: scripts are read as a shell would, ranks are computed as the launchers' documentation
and sources do, and the result is compared with the expansion of the plan by :mod:`solver.plan`.
"""

from __future__ import annotations

import csv
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from solver.expansion import expand
from solver.export import Export
from solver.plan import Plan

Place = tuple[int, int]
"""(node, GPU of the node)."""


@dataclass(frozen=True)
class Shard:
    """What one process works on."""

    replica: int
    stage: int
    attn_tp: int
    attn_dp: int
    moe_tp: int
    moe_ep: int
    layers: tuple[int, int]
    experts: tuple[tuple[int, tuple[int, ...]], ...] = ()
    """(decoder layer, logical experts), where the launcher decides them."""


@dataclass
class Started:
    """A command of a script: node, replica in order of appearance, environment, words."""

    node: int
    env: dict[str, str]
    argv: list[str]
    replica: int = -1

    def option(self, name: str, default: int = 1) -> int:
        """Value of a whole-number option."""
        return int(self.argv[self.argv.index(name) + 1]) if name in self.argv else default

    def text(self, name: str) -> str | None:
        """Value of a text option."""
        return self.argv[self.argv.index(name) + 1] if name in self.argv else None


@dataclass
class Instance:
    """The commands of one instance by node rank."""

    commands: list[Started] = field(default_factory=list)

    @property
    def gpus(self) -> list[Place]:
        """GPUs in launcher order: node rank after node rank, in the order of CUDA_VISIBLE_DEVICES."""
        return [
            (command.node, int(gpu))
            for command in self.commands
            for gpu in command.env["CUDA_VISIBLE_DEVICES"].split(",")
        ]


def write(result: Export, folder: Path) -> None:
    """An export as files."""
    for file in result.files:
        path = folder / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file.text, encoding="utf-8")


def read_scripts(folder: Path) -> list[Started]:
    """Commands of the node scripts, in the order of files and lines."""
    commands = []
    for script in sorted(folder.glob("node-*.sh")):
        node = int(re.findall(r"\d+", script.stem)[0])
        text = re.sub(r"\\\n\s*", " ", script.read_text())
        for line in text.splitlines():
            words = shlex.split(line, comments=True)
            words = words[1:] if words[:1] == ["exec"] else words
            if words[:1] != ["env"]:
                continue
            words = [word for word in words[1:] if word != "&"]
            split = next(i for i, word in enumerate(words) if not re.match(r"[A-Z_]+=", word))
            env = dict(word.split("=", 1) for word in words[:split])
            commands.append(Started(node, env, words[split:]))
    return commands


LEAD = ("--data-parallel-address", "--master-addr", "--dist-init-addr")


def instances(folder: Path) -> list[Instance]:
    """Commands grouped by instance: those that name one leader and port belong together; in order of first GPU."""
    groups: dict[tuple[object, ...], Instance] = {}
    for number, command in enumerate(read_scripts(folder)):
        name = next((command.text(option) for option in LEAD if command.text(option)), None)
        extra = command.text("--data-parallel-rpc-port") or command.text("--master-port")
        key = (name, extra) if name else ("alone", number)
        groups.setdefault(key, Instance()).commands.append(command)

    def position(command: Started) -> int:
        if "--node-rank" in command.argv:
            return command.option("--node-rank")
        return command.option("--data-parallel-start-rank", 0)

    for group in groups.values():
        group.commands.sort(key=position)
    return sorted(groups.values(), key=lambda group: group.gpus[0])


def bounds(text: str | None, layers: int, stages: int) -> list[tuple[int, int]]:
    """First and last layer of every stage from a partition ``29,32``."""
    counts = [int(part) for part in text.split(",")] if text else [layers]
    assert len(counts) == stages
    assert sum(counts) == layers
    ends = [sum(counts[: i + 1]) for i in range(stages)]
    return [(end - count, end - 1) for end, count in zip(ends, counts, strict=True)]


def linear(experts: int, ranks: int) -> list[list[int]]:
    """Experts in order; the first ``experts % ranks`` ranks get one more."""
    each, more = divmod(experts, ranks)
    starts = [rank * each + min(rank, more) for rank in range(ranks + 1)]
    return [list(range(starts[rank], starts[rank + 1])) for rank in range(ranks)]


# --- launchers --------------------------------------------------------------------------------------------------------


def vllm_shards(plan: Plan, folder: Path) -> Iterator[tuple[Place, Shard]]:
    """vLLM 0.33: rank = dp * (PP * TP) + pp * TP + tp; EP rank = dp * TP + tp; without EP all ranks cut the experts."""
    llm = plan.problem.llm
    for replica, instance in enumerate(instances(folder)):
        first = instance.commands[0]
        tp, pp, dp = (first.option(f"--{n}-parallel-size") for n in ("tensor", "pipeline", "data"))
        split = bounds(first.env.get("VLLM_PP_LAYER_PARTITION"), llm.num_layers, pp)
        ep_on = "--enable-expert-parallel" in first.argv
        gpus = instance.gpus
        assert len(gpus) == tp * pp * dp
        held = _vllm_experts(plan, folder, first, dp * tp) if llm.is_moe and ep_on else None
        for rank, place in enumerate(gpus):
            d, rest = divmod(rank, pp * tp)
            p, t = divmod(rest, tp)
            ep = d * tp + t
            experts = () if held is None else tuple(
                (layer, tuple(held[i][ep])) for i, layer in enumerate(llm.moe_layer_indices)
                if split[p][0] <= layer <= split[p][1]
            )  # fmt: skip
            moe = (0, ep) if ep_on else (ep, 0)
            yield place, Shard(replica, p, t, d, *(moe if llm.is_moe else (0, 0)), split[p], experts)


def _vllm_experts(plan: Plan, folder: Path, command: Started, ep: int) -> list[list[list[int]]]:
    """Per MoE layer and EP rank: the plugin's rows where EPLB is on, else in order."""
    moe = plan.problem.llm.moe
    assert moe is not None
    if "--enable-eplb" not in command.argv:
        return [linear(moe.num_experts, ep)] * plan.problem.llm.num_moe_layers
    config = json.loads(command.text("--eplb-config") or "{}")
    slots = moe.num_experts + config["num_redundant_experts"]
    assert slots % ep == 0
    rows = json.loads((folder / command.env["SHARDWRIGHT_EXPERT_MAP"]).read_text())["physical_to_logical_map"]
    assert [len(row) for row in rows] == [slots] * plan.problem.llm.num_moe_layers
    return [[row[r * slots // ep : (r + 1) * slots // ep] for r in range(ep)] for row in rows]


def sglang_shards(plan: Plan, folder: Path) -> Iterator[tuple[Place, Shard]]:
    """SGLang 0.5.23: rank = pp * TP + tp; tp = attn_dp * ATTN_TP + attn_tp = moe_ep * MOE_TP + moe_tp."""
    llm = plan.problem.llm
    for replica, instance in enumerate(instances(folder)):
        first = instance.commands[0]
        tp, pp = first.option("--tp-size"), first.option("--pp-size")
        dp, ep = first.option("--attn-dp-size"), first.option("--ep-size")
        split = bounds(first.env.get("SGLANG_PP_LAYER_PARTITION"), llm.num_layers, pp)
        nodes = len(instance.commands)
        places: dict[int, Place] = {}
        stages_here, nodes_per_stage = max(pp // nodes, 1), max(nodes // pp, 1)
        tp_here = tp // nodes_per_stage
        for node, command in enumerate(instance.commands):  # SGLang's own loops over the ranks of a node
            visible = command.env["CUDA_VISIBLE_DEVICES"].split(",")
            for p in range(stages_here * (node // nodes_per_stage), stages_here * (node // nodes_per_stage + 1)):
                for t in range(tp_here * (node % nodes_per_stage), tp_here * (node % nodes_per_stage + 1)):
                    gpu = (p % stages_here) * tp_here + t % tp_here
                    places[p * tp + t] = (command.node, int(visible[gpu]))
        assert sorted(places) == list(range(tp * pp))
        rows = None
        if name := first.text("--init-expert-location"):
            rows = json.loads((folder / name).read_text())["physical_to_logical_map"]
            assert len(rows) == llm.num_layers
        for rank, place in places.items():
            p, t = divmod(rank, tp)
            moe_ep, moe_tp = divmod(t, tp // ep)
            experts = []
            for layer in llm.moe_layer_indices if llm.moe else ():
                if split[p][0] <= layer <= split[p][1]:
                    row = rows[layer] if rows else list(range(llm.moe.num_experts))  # type: ignore[union-attr]
                    size = len(row) // ep
                    experts.append((layer, tuple(row[moe_ep * size : (moe_ep + 1) * size])))
            attn = (t % (tp // dp), t // (tp // dp))
            yield (
                place,
                Shard(replica, p, *attn, *((moe_tp, moe_ep) if llm.is_moe else (0, 0)), split[p], tuple(experts)),
            )


def read_yaml(path: Path) -> Any:
    """The subset of YAML that exports use: block mappings and lists, JSON values."""
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]

    def block(at: int, indent: int) -> tuple[Any, int]:
        if lines[at].lstrip().startswith("- "):
            items: list[Any] = []
            while at < len(lines) and lines[at].startswith(" " * indent + "- "):
                lines[at] = " " * (indent + 2) + lines[at][indent + 2 :]
                body = lines[at].strip()
                if re.match(r'^("[^"]*"|[\w-]+):( |$)', body) and not body.startswith('"'):
                    item, at = block(at, indent + 2)
                else:
                    item, at = json.loads(body), at + 1
                items.append(item)
            return items, at
        table: dict[Any, Any] = {}
        while (
            at < len(lines)
            and len(lines[at]) - len(lines[at].lstrip()) == indent
            and not lines[at].lstrip().startswith("- ")
        ):
            found = re.match(r'^("(?:[^"\\]|\\.)*"|[\w-]+):(.*)$', lines[at].strip())
            assert found, lines[at]
            key: Any = json.loads(found[1]) if found[1].startswith('"') else found[1]
            key = int(key) if key.isdigit() else key
            if found[2].strip():
                table[key], at = json.loads(found[2]), at + 1
            else:
                table[key], at = block(at + 1, len(lines[at + 1]) - len(lines[at + 1].lstrip()))
        return table, at

    return block(0, 0)[0]


def trtllm_shards(plan: Plan, folder: Path) -> Iterator[tuple[Place, Shard]]:
    """TensorRT-LLM 1.2: rank = pp * TP + tp; moe_ep = tp % EP, moe_tp = tp // EP; device = rank % gpus_per_node."""
    llm, config = plan.problem.llm, read_yaml(folder / "trtllm.yaml")
    tp, pp = config["tensor_parallel_size"], config["pipeline_parallel_size"]
    ep = config.get("moe_expert_parallel_size", 1)
    assert config.get("moe_tensor_parallel_size", tp) * ep == tp
    split = bounds(",".join(map(str, config["pp_partition"])) if pp > 1 else None, llm.num_layers, pp)
    balancer = read_yaml(folder / "moe_load_balancer.yaml") if (folder / "moe_load_balancer.yaml").exists() else None
    digest = re.search(r"plan ([0-9a-f]{12})", (folder / "trtllm.yaml").read_text())
    assert digest
    for replica, instance in enumerate(
        sorted(read_scripts(folder), key=lambda c: (c.node, c.env["CUDA_VISIBLE_DEVICES"]))
    ):
        visible = [int(gpu) for gpu in instance.env["CUDA_VISIBLE_DEVICES"].split(",")]
        assert len(visible) == config["gpus_per_node"]
        hosts = instance.env.get("SLURM_HOSTFILE")
        names = (folder / hosts).read_text().split() if hosts else [f"node{instance.node}"] * (tp * pp)
        for rank in range(tp * pp):
            p, t = divmod(rank, tp)
            attn = (0, t) if config["enable_attention_dp"] else (t, 0)
            experts = []
            for layer in llm.moe_layer_indices if llm.moe else ():
                if split[p][0] <= layer <= split[p][1]:
                    row = list(range(llm.moe.num_experts))  # type: ignore[union-attr]
                    row = balancer["initial_global_assignments"][layer] if balancer else row
                    size = len(row) // ep
                    experts.append((layer, tuple(row[t % ep * size : (t % ep + 1) * size])))
            moe = (t // ep, t % ep) if llm.is_moe else (0, 0)
            place = (int(names[rank].removeprefix("node")), visible[rank % config["gpus_per_node"]])
            yield place, Shard(replica, p, *attn, *moe, split[p], tuple(experts))


def megatron_shards(plan: Plan, folder: Path) -> Iterator[tuple[Place, Shard]]:
    """Megatron: rank = node rank * processes + local; tp fastest, then dp, then pp; etp fastest among the experts."""
    llm = plan.problem.llm
    for replica, instance in enumerate(instances(folder)):
        first = instance.commands[0]
        tp, pp = first.option("--tensor-model-parallel-size"), first.option("--pipeline-model-parallel-size")
        ep, etp = first.option("--expert-model-parallel-size"), first.option("--expert-tensor-parallel-size")
        stages = (first.text("--pipeline-model-parallel-layout") or "E" + "t" * llm.num_layers + "L").split("|")
        split = bounds(",".join(str(stage.count("t")) for stage in stages), llm.num_layers, pp)
        world = sum(command.option("--nproc-per-node") for command in instance.commands)
        assert world == len(instance.gpus)
        group = world // pp
        for rank, place in enumerate(instance.gpus):
            p, r = divmod(rank, group)
            moe_tp, moe_ep = r % etp, r // etp % ep
            experts = ()
            if llm.moe:
                rows = linear(llm.moe.num_experts, ep)
                layers = [layer for layer in llm.moe_layer_indices if split[p][0] <= layer <= split[p][1]]
                experts = tuple((layer, tuple(rows[moe_ep])) for layer in layers)
            moe = (moe_tp, moe_ep) if llm.is_moe else (0, 0)
            yield place, Shard(replica, p, r % tp, r // tp, *moe, split[p], experts)


def megatron_spec(folder: Path, rank: int, layers: int) -> dict[str, Any]:
    """What ``initialize_model_parallel`` is given by the exported arguments."""
    instance = instances(folder)[0]
    first = instance.commands[0]
    return {
        "world": len(instance.gpus),
        "rank": rank,
        "tensor_model_parallel_size": first.option("--tensor-model-parallel-size"),
        "pipeline_model_parallel_size": first.option("--pipeline-model-parallel-size"),
        "expert_model_parallel_size": first.option("--expert-model-parallel-size"),
        "expert_tensor_parallel_size": first.option("--expert-tensor-parallel-size"),
        "layout": first.text("--pipeline-model-parallel-layout"),
        "num_layers": layers,
    }


def megatron_groups(plan: Plan, rank: int) -> dict[str, list[int]]:
    """Groups that a rank of the first instance must have, from the plan's own map; ranks by ascending GPU."""
    records = [record for record in expand(plan) if record.replica == 0]
    order = sorted(records, key=lambda r: r.gpu)
    me, moe = order[rank], plan.problem.llm.is_moe

    def ranks(*same: str) -> list[int]:
        return [i for i, r in enumerate(order) if all(getattr(r, name) == getattr(me, name) for name in same)]

    found = {
        "tp": ranks("stage", "attn_dp_rank"),
        "dp": ranks("stage", "attn_tp_rank"),
        "pp": ranks("attn_tp_rank", "attn_dp_rank"),
    }
    if moe:
        found |= {"ep": ranks("stage", "moe_tp_rank"), "etp": ranks("stage", "moe_ep_rank")}
    return found


ENGINES = {"vllm": vllm_shards, "sglang": sglang_shards, "trtllm": trtllm_shards, "megatron": megatron_shards}


# --- rank launchers ---------------------------------------------------------------------------------------------------


def job_places(target: str, folder: Path) -> list[Place]:
    """Place of every rank of the whole job, replica after replica, for launchers that only place processes."""
    if target == "slurm":
        hosts = next(folder.glob("hosts.*.txt")).read_text().split()
        gpus = next(folder.glob("devices.*.txt")).read_text().split()
        return [(int(h.removeprefix("node")), int(g)) for h, g in zip(hosts, gpus, strict=True)]
    if target == "mpi":
        found = re.findall(r"^rank (\d+)=node(\d+) slot=(\d+)$", (folder / "rankfile.txt").read_text(), re.M)
        assert [int(rank) for rank, _, _ in found] == list(range(len(found)))
        hosts = [h for h in (folder / "sequence.txt").read_text().splitlines() if not h.startswith("#")]
        assert hosts == [f"node{node}" for _, node, _ in found]
        assert next(folder.glob("devices.*.txt")).read_text().split() == [gpu for _, _, gpu in found]
        return [(int(node), int(gpu)) for _, node, gpu in found]
    if target == "csv":
        with open(folder / "ranks.csv", newline="") as file:
            return [(int(row["node"]), int(row["local_gpu"])) for row in csv.DictReader(file)]
    if target == "jsonl":
        rows = [json.loads(line) for line in (folder / "ranks.jsonl").read_text().splitlines()]
        return [(row["node"], row["local_gpu"]) for row in rows]
    assert target == "ray"
    document = json.loads((folder / "placement.json").read_text())
    return [
        (int(select["host"].removeprefix("node")), gpu)
        for select, gpu in zip(document["bundle_label_selector"], document["gpus"], strict=True)
    ]


def torchrun_places(folder: Path) -> list[Place]:
    """rank = node rank * processes + local rank (static rendezvous), or the RANK of a single process."""
    places: dict[tuple[int, int], Place] = {}
    for command in read_scripts(folder):
        visible = [int(gpu) for gpu in command.env["CUDA_VISIBLE_DEVICES"].split(",")]
        replica = int(command.env["REPLICA"])
        if "RANK" in command.env:
            places[replica, int(command.env["RANK"])] = (command.node, visible[0])
            continue
        count = command.option("--nproc-per-node")
        for local in range(count):
            places[replica, command.option("--node-rank") * count + local] = (command.node, visible[local])
    return [places[key] for key in sorted(places)]


def launched(target: str, folder: Path) -> list[Place]:
    """GPUs that an export starts processes on, by whatever target, each as often as it is started on."""
    if target == "torchrun":
        return torchrun_places(folder)
    if target in ("slurm", "mpi", "csv", "jsonl"):
        return job_places(target, folder)
    if target == "ray":
        nodes = json.loads((folder / "placement.json").read_text())["nodes"]
        per_node = max(node["gpus"] for node in nodes)
        return [(node, gpu % per_node) for node, gpu in job_places(target, folder)]
    if target == "trtllm":
        return [place for command in read_scripts(folder) for place in _trtllm_gpus(command, folder)]
    return [(c.node, int(gpu)) for c in read_scripts(folder) for gpu in c.env["CUDA_VISIBLE_DEVICES"].split(",")]


def _trtllm_gpus(command: Started, folder: Path) -> list[Place]:
    """Every rank's node from the host file (or the script's own), its device by rank % gpus_per_node."""
    config = read_yaml(folder / (command.text("--config") or "trtllm.yaml"))
    ranks = config["tensor_parallel_size"] * config["pipeline_parallel_size"]
    visible = [int(gpu) for gpu in command.env["CUDA_VISIBLE_DEVICES"].split(",")]
    assert len(visible) == config["gpus_per_node"]
    hosts = command.env.get("SLURM_HOSTFILE")
    names = (folder / hosts).read_text().split() if hosts else [f"node{command.node}"] * ranks
    return [(int(names[rank].removeprefix("node")), visible[rank % len(visible)]) for rank in range(ranks)]


def planned(plan: Plan) -> dict[Place, Shard]:
    """The plan's own map."""
    return {
        (r.node, r.local_gpu): Shard(
            r.replica, r.stage, r.attn_tp_rank, r.attn_dp_rank, r.moe_tp_rank, r.moe_ep_rank,
            (r.first_layer, r.last_layer), tuple(sorted(r.experts.items())),
        )
        for r in expand(plan)
    }  # fmt: skip


def misplaced(plan: Plan, target: str, folder: Path) -> list[str]:
    """Differences between the exported launch and the plan; empty when every shard is on the GPU of the plan."""
    wanted = planned(plan)
    if not plan.problem.llm.is_moe:
        wanted = {place: Shard(s.replica, s.stage, s.attn_tp, s.attn_dp, 0, 0, s.layers) for place, s in wanted.items()}
    if target in ENGINES:
        found = dict(ENGINES[target](plan, folder))
        keep_experts = any(shard.experts for shard in found.values())
        if not keep_experts:  # experts are not shared out: every rank holds a slice of all of them
            assert plan.strategy.moe_ep == 1
            wanted = {
                p: Shard(s.replica, s.stage, s.attn_tp, s.attn_dp, s.moe_tp, s.moe_ep, s.layers)
                for p, s in wanted.items()
            }
        wrong = [
            f"{place}: {found.get(place)} instead of {shard}"
            for place, shard in wanted.items()
            if found.get(place) != shard
        ]
        return wrong + [f"{place} is not in the plan" for place in found.keys() - wanted.keys()]
    places = torchrun_places(folder) if target == "torchrun" else job_places(target, folder)
    return _misplaced_ranks(plan, wanted, places, on_cluster=target == "ray")


def _misplaced_ranks(plan: Plan, wanted: dict[Place, Shard], places: list[Place], *, on_cluster: bool) -> list[str]:
    """Ranks against the plan by the arithmetic of the plan's engine (of its mesh order where it has none)."""
    s, nodes = plan.strategy.strategy(), plan.placement.gpus_per_node
    order = {"vllm": "tp-pp-dp", "any": s.mesh_order}.get(plan.problem.engine, "tp-dp-pp")
    wrong = []
    for job_rank, (node, gpu) in enumerate(places):
        replica, rank = divmod(job_rank, s.instance_gpus)
        tp, rest = rank % s.attn_tp, rank // s.attn_tp
        if order == "tp-pp-dp":
            stage, dp = rest % s.pp, rest // s.pp
        else:
            dp, stage = rest % s.attn_dp, rest // s.attn_dp
        shard = wanted.get((node, gpu % nodes if on_cluster else gpu))
        if shard is None or (shard.replica, shard.stage, shard.attn_tp, shard.attn_dp) != (replica, stage, tp, dp):
            wrong.append(f"rank {job_rank} on {(node, gpu)}: {shard}")
        if on_cluster and gpu // nodes != node:
            wrong.append(f"rank {job_rank}: GPU {gpu} is not on node {node}")
    if len(set(places)) != len(wanted):
        wrong.append(f"{len(set(places))} places for {len(wanted)} shards")
    return wrong


def skewed_loads(llm: str, file: Path) -> Path:
    """Expert loads that fall off from the first expert to the last, shifted from layer to layer."""
    from solver.specs.catalog import load_llm

    network = load_llm(llm)
    assert network.moe is not None
    experts = network.moe.num_experts
    rows = [
        [1000 + 4000 * ((expert * 7 + layer * 3) % experts) // experts for expert in range(experts)]
        for layer in range(network.num_moe_layers)
    ]
    file = file.with_name(f"{llm}-{file.name}")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(rows))
    return file
