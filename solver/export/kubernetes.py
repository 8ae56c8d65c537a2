"""Kubernetes: LeaderWorkerSet, Dynamo graph deployment, llm-d values; the engine's own words inside the container.

A pod is one node of an instance and asks for as many GPUs as the instance has there. Which node a pod gets is the
scheduler's choice and which GPUs of it the device plugin's: equal nodes and equal GPUs of a node are interchangeable,
so the plan holds up to their names. Pod index = node index of the instance, hence ranks are the plan's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from solver.errors import ExportError
from solver.export import sglang, trtllm, vllm
from solver.export.deployment import Deployment, Pool
from solver.export.files import Command, ExportFile, Yaml, comment_head, yaml_text

IMAGES = {
    "vllm": "vllm/vllm-openai:v0.33.0",
    "sglang": "lmsysorg/sglang:v0.5.23",
    "trtllm": "nvcr.io/nvidia/tensorrt-llm/release:1.2.1",
}
COMMANDS: dict[str, Callable[[Deployment], list[Command]]] = {
    "vllm": vllm.commands,
    "sglang": sglang.commands,
    "trtllm": trtllm.commands,
}
POD_ADDRESS = "VLLM_NIXL_SIDE_CHANNEL_HOST"
POD_ADDRESS_ENTRY: Mapping[str, Yaml] = {
    "name": POD_ADDRESS,
    "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}},
}
"""Where other instances find the KV cache: each pod's own address."""
PLAN_FOLDER = "/plan"
"""Where the config map with the plan's files is mounted."""


def _engine(deployment: Deployment, target: str) -> str:
    if deployment.engine not in COMMANDS:
        raise ExportError(
            f"target {target} launches vllm, sglang or trtllm, and the plan is for engine {deployment.engine!r}; solve "
            "with --engine, or name one with --engine in export"
        )
    return deployment.engine


DIST_INFO = {
    "METADATA": "Metadata-Version: 2.1\nName: shardwright-expert-map\nVersion: 0.1\n",
    "entry_points.txt": f"[vllm.general_plugins]\n{vllm.PLUGIN} = {vllm.PLUGIN}:register\n",
}
"""What makes the plugin in the config map an installed package for the Python path."""


def _has_plugin(deployment: Deployment) -> bool:
    return deployment.engine == "vllm" and vllm.needs_map(deployment.pool)


def _extra_files(deployment: Deployment) -> dict[str, tuple[str, str]]:
    """Files that the engine reads, for a config map: key -> (path below the mount, text)."""
    engine = deployment.engine
    made = {"vllm": vllm.files, "sglang": sglang.files, "trtllm": trtllm.files}[engine](deployment)
    wanted = (".json", ".yaml", "expert_map.py")
    names = {file.path.rsplit("/", 1)[-1]: file.text for file in made if file.path.endswith(wanted)}
    found = {name: (name, text) for name, text in names.items()}
    if _has_plugin(deployment):
        found |= {key: (f"{vllm.PLUGIN}-0.1.dist-info/{key}", text) for key, text in DIST_INFO.items()}
    return found


def _volumes(deployment: Deployment) -> list[Yaml]:
    items: list[Yaml] = [{"key": key, "path": path} for key, (path, _) in _extra_files(deployment).items()]
    source: dict[str, Yaml] = {"name": _name(deployment), **({"items": items} if items else {})}
    return [{"name": "plan", "configMap": source}, {"name": "shm", "emptyDir": {"medium": "Memory"}}]


def _parallel_words(deployment: Deployment) -> tuple[list[str], list[str]]:
    """Words of the first and of the further nodes of an instance, with Kubernetes' names for address and index."""
    first = deployment.instances[0]
    own = [c for c in COMMANDS[deployment.engine](deployment) if c.replica == first.replica]
    lead = deployment.lead(first)

    def local(words: tuple[str, ...]) -> list[str]:
        return [re.sub(rf"^{re.escape(lead)}(?=$|:)", "$(LWS_LEADER_ADDRESS)", word) for word in words]

    return local(own[0].argv), local(own[1].argv) if len(own) > 1 else []


def _container(deployment: Deployment, words: list[str]) -> dict[str, Yaml]:
    share = deployment.instances[0].shares[0]
    first = COMMANDS[deployment.engine](deployment)[0]
    env: list[Yaml] = [
        {"name": name, "value": value} for name, value in first.env if name not in ("CUDA_VISIBLE_DEVICES", POD_ADDRESS)
    ]
    if POD_ADDRESS in dict(first.env):
        env.append(POD_ADDRESS_ENTRY)
    if _has_plugin(deployment):
        env.append({"name": "PYTHONPATH", "value": PLAN_FOLDER})
    gpus: dict[str, Yaml] = {"nvidia.com/gpu": str(len(share.seats))}
    return {
        "name": deployment.engine,
        "image": IMAGES[deployment.engine],
        "workingDir": PLAN_FOLDER,
        "command": words,
        "env": env,
        "resources": {"limits": gpus, "requests": gpus},
        "volumeMounts": [{"name": "plan", "mountPath": PLAN_FOLDER}, {"name": "shm", "mountPath": "/dev/shm"}],
    }


def _pod(deployment: Deployment, words: list[str]) -> dict[str, Yaml]:
    return {
        "spec": {
            "containers": [_container(deployment, words)],
            "volumes": _volumes(deployment),
        }
    }


def _name(deployment: Deployment) -> str:
    return "-".join(part for part in ("plan", deployment.short_digest, deployment.name) if part)


def _indexed(words: list[str]) -> list[str]:
    """Words of a worker pod: the shell computes what depends on the pod's index in its group."""
    text = " ".join(_quoted(word) for word in words)
    for flag, scale in (("--node-rank", 1), ("--data-parallel-start-rank", None)):
        if flag in words:
            at = words.index(flag)
            each = int(words[at + 1]) if scale is None else 1
            text = text.replace(
                f"{flag} {words[at + 1]}",
                f"{flag} $((LWS_WORKER_INDEX * {each}))" if each > 1 else f"{flag} $LWS_WORKER_INDEX",
            )
    return ["bash", "-c", f"exec {text}"]


def _quoted(word: str) -> str:
    import shlex

    return word.replace("$(LWS_LEADER_ADDRESS)", "$LWS_LEADER_ADDRESS") if "$(LWS" in word else shlex.quote(word)


def lws_files(deployment: Deployment) -> list[ExportFile]:
    """LeaderWorkerSet, config map and service."""
    _engine(deployment, "kubernetes")
    instance, name = deployment.instances[0], _name(deployment)
    if deployment.engine == "trtllm" and len(instance.shares) > 1:
        raise ExportError(
            f"trtllm starts an instance of {len(instance.shares)} nodes by MPI, which a LeaderWorkerSet does not run; "
            "export to slurm or dynamo, or solve with at most one node per instance"
        )
    leader, worker = _parallel_words(deployment)
    labels: dict[str, Yaml] = {"app": name}
    template: dict[str, Yaml] = {
        "size": len(instance.shares),
        "restartPolicy": "RecreateGroupOnPodRestart",
        "leaderTemplate": {
            "metadata": {"labels": labels, **_found_by_router(deployment, labels)},
            **_pod(deployment, leader),
        },
        "workerTemplate": _pod(deployment, _indexed(worker) if worker else leader),
    }
    manifest: dict[str, Yaml] = {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": {"name": name, "annotations": {"shardwright/plan": deployment.digest}},
        "spec": {"replicas": len(deployment.instances), "leaderWorkerTemplate": template},
    }
    service: dict[str, Yaml] = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "annotations": {"shardwright/plan": deployment.digest}},
        "spec": {"selector": labels, "ports": [{"port": 80, "targetPort": deployment.port}]},
    }
    head = comment_head(deployment.origin)
    return [
        ExportFile("leaderworkerset.yaml", head + yaml_text(manifest) + "\n"),
        ExportFile("service.yaml", head + yaml_text(service) + "\n"),
        ExportFile("configmap.yaml", head + yaml_text(config_map(deployment)) + "\n"),
    ]


def _found_by_router(deployment: Deployment, labels: Mapping[str, Yaml]) -> dict[str, Yaml]:
    """What a router that looks for pods goes by, where the document has several groups."""
    if not deployment.name:
        return {}
    told: dict[str, Yaml] = {
        "labels": {**labels, "deployment": f"plan-{deployment.short_digest}", "role": deployment.pool.role}
    }
    if deployment.engine == "sglang" and deployment.pool.role == "prefill":
        port = deployment.port_of(deployment.instances[0], sglang.BOOTSTRAP_PORT)
        told["annotations"] = {"sglang.ai/bootstrap-port": str(port)}
    return told


def config_map(deployment: Deployment) -> dict[str, Yaml]:
    """The files that the engine reads."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": _name(deployment), "annotations": {"shardwright/plan": deployment.digest}},
        "data": {key: text for key, (_, text) in _extra_files(deployment).items()},
    }


def dynamo_files(deployment: Deployment) -> list[ExportFile]:
    """Dynamo graph deployment: a frontend and one worker component with the engine's words."""
    name, head = _name(deployment), comment_head(deployment.origin)
    return [
        ExportFile("dynamo.yaml", head + yaml_text(dynamo_graph(name, [deployment])) + "\n"),
        ExportFile("configmap.yaml", head + yaml_text(config_map(deployment)) + "\n"),
    ]


def dynamo_graph(name: str, parts: Sequence[Deployment]) -> dict[str, Yaml]:
    """The graph: a frontend, and a component of workers for each part."""
    front: dict[str, Yaml] = {"name": "frontend", "type": "frontend", "replicas": 1}
    return {
        "apiVersion": "nvidia.com/v1beta1",
        "kind": "DynamoGraphDeployment",
        "metadata": {"name": name, "annotations": {"shardwright/plan": parts[0].digest}},
        "spec": {
            "backendFramework": _engine(parts[0], "dynamo"),
            "components": [front, *(_component(part) for part in parts)],
        },
    }


def _component(deployment: Deployment) -> dict[str, Yaml]:
    engine, instance = _engine(deployment, "dynamo"), deployment.instances[0]
    leader, _ = _parallel_words(deployment)
    skip = {"vllm": 3, "sglang": 3, "trtllm": 2}[engine]
    model = {"vllm": ["--model", deployment.weights], "trtllm": ["--model-path", deployment.weights], "sglang": []}[
        engine
    ]
    words = [*model, *_without_addresses(leader[skip:])]
    if deployment.pool.role != "aggregated" and "--disaggregation-mode" not in words:
        words += ["--disaggregation-mode", deployment.pool.role]
    container = {
        **_container(deployment, ["python3", "-m", f"dynamo.{engine}", *words]),
        "name": "main",
        "image": {
            "vllm": "nvcr.io/nvidia/ai-dynamo/vllm-runtime:1.6.1",
            "sglang": "nvcr.io/nvidia/ai-dynamo/sglang-runtime:1.6.1",
            "trtllm": "nvcr.io/nvidia/ai-dynamo/tensorrtllm-runtime:1.6.1",
        }[engine],
    }
    pod: dict[str, Yaml] = {"spec": {"containers": [container], "volumes": _volumes(deployment)}}
    worker: dict[str, Yaml] = {
        "name": deployment.name or "worker",
        "type": {"aggregated": "worker"}.get(deployment.pool.role, deployment.pool.role),
        "replicas": len(deployment.instances),
        "podTemplate": pod,
    }
    if len(instance.shares) > 1:
        worker["multinode"] = {"nodeCount": len(instance.shares)}
    return worker


ADDRESSES = {
    "--host", "--port", "--nnodes", "--node-rank", "--dist-init-addr", "--master-addr", "--master-port",
    "--data-parallel-address", "--data-parallel-rpc-port", "--data-parallel-size-local",
}  # fmt: skip
"""Options that the operator sets by itself for multi-node components."""


def _without_addresses(words: list[str]) -> list[str]:
    kept, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif word in ADDRESSES:
            skip = True
        else:
            kept.append(word)
    return kept


def llmd_files(deployment: Deployment) -> list[ExportFile]:
    """Values of the llm-d modelservice chart.

    Raises
    ------
    ExportError
        The chart has no pipeline stages and no attention TP over nodes.
    """
    values = llmd_values({"decode": deployment})
    return [ExportFile("llm-d-values.yaml", comment_head(deployment.origin) + yaml_text(values) + "\n")]


def llmd_values(parts: Mapping[str, Deployment]) -> dict[str, Yaml]:
    """Values with a section for the pool that decodes (and prefills, if it is alone), and one for the other.

    Raises
    ------
    ExportError
        As :func:`llmd_files`.
    """
    weights = parts["decode"].weights
    return {
        "multinode": any(len(part.instances[0].shares) > 1 for part in parts.values()),
        "modelArtifacts": {"uri": f"hf://{weights}", "name": weights, "size": "2Ti"},
        "decode": _llmd_pool(parts["decode"]),
        "prefill": _llmd_pool(parts["prefill"]) if "prefill" in parts else {"create": False},
    }


def _llmd_pool(deployment: Deployment) -> dict[str, Yaml]:
    engine, pool = _engine(deployment, "llm-d"), deployment.pool
    strategy = pool.strategy
    if engine != "vllm":
        raise ExportError(f"llm-d launches vllm, and the plan is for {engine}; solve with --engine vllm")
    if strategy.pp > 1:
        raise ExportError(
            f"llm-d values have no pipeline stages, the plan has pp = {strategy.pp}; export to kubernetes "
            "(LeaderWorkerSet), or solve with --engine vllm --fix pp=1"
        )
    if _has_plugin(deployment):
        raise ExportError(
            "llm-d values carry no files, and the plan's expert map needs one with the plugin; export to kubernetes"
        )
    instance = deployment.instances[0]
    per_node = len(instance.shares[0].seats)
    if per_node % strategy.attn_tp:
        raise ExportError(
            f"llm-d wants whole TP groups on a node, the plan has TP = {strategy.attn_tp} over nodes of {per_node} "
            "GPUs; export to kubernetes"
        )
    parallelism: dict[str, Yaml] = {
        "tensor": strategy.attn_tp,
        "data": strategy.attn_dp,
        "dataLocal": per_node // strategy.attn_tp,
        "workers": len(instance.shares),
    }
    return {
        "create": True,
        "replicas": len(deployment.instances),
        "parallelism": parallelism,
        "containers": [_llmd_container(pool, deployment)],
    }


def _llmd_container(pool: Pool, deployment: Deployment) -> dict[str, Yaml]:
    words = vllm.serve_options(deployment, pool)[1:]
    own = {"--tensor-parallel-size", "--pipeline-parallel-size", "--data-parallel-size"}
    kept = [w for i, w in enumerate(words) if w not in own and (i == 0 or words[i - 1] not in own)]
    env: list[Yaml] = [{"name": "SHARDWRIGHT_PLAN", "value": deployment.short_digest}]
    if pool.role != "aggregated":
        env.append(POD_ADDRESS_ENTRY)
    return {
        "name": "vllm",
        "image": IMAGES["vllm"],
        "modelCommand": "vllmServe",
        "args": kept,
        "env": env,
    }
