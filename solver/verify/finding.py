"""What the judge says: findings, and every rule it knows beyond the legality of strategies."""

from __future__ import annotations

from dataclasses import dataclass

from solver.legality import RULES


@dataclass(frozen=True)
class Finding:
    """A rule that the plan breaks, with the numbers."""

    rule: str
    sentence: str

    def __str__(self) -> str:
        return f"[{self.rule}] {self.sentence}"


VERIFY_RULES: dict[str, str] = {
    **RULES,
    "digest": "the certificate's problem digest is that of the embedded problem",
    "labels": "both labels are those of the degrees",
    "layers": "stage_layers has pp entries of at least one layer that add up to the layers of the LLM",
    "topology": "domain_gpus, gpus_per_node and moe_tp_fastest are those of the cluster and the engine",
    "gpus-once": "every rank has a GPU of its own in the cluster, and gpus_used counts them",
    "tp-groups": "the ranks of every attention and expert TP group share a scale-up domain (unless allowed otherwise)",
    "records": "expanded records (all with --full, else 4,096) hold what stage, expert map and bins give their rank",
    "ledger": "the memory ledger is the one recomputed from strategy and placement, item by item",
    "expert-maps": "every MoE layer has a map of moe_ep ranks; a dense LLM has none",
    "expert-range": "every slot holds a logical expert of the layer",
    "expert-missing": "every logical expert has a replica in every layer",
    "expert-twice": "no rank holds an expert twice in one layer",
    "expert-slots": "every rank holds as many replicas as slots, experts plus redundant ones in total",
    "load-factor": "lambda_ppm is the one recomputed from the expert maps and the expected loads",
    "bins": "there is one bin per attention-DP rank and micro-batch; without bins all sequences are equally long",
    "bin-cap": "no bin holds more than `batch` sequences",
    "sequences": "every sequence sits in exactly one bin, as many as are concurrent (all slots when that is free)",
    "load": "load_tokens is the heaviest bin, recomputed",
    "closed-loop": "the closed-loop means are the ones recomputed from strategy and placement",
    "operator-sources": "the sources of the operator times are the ones found again",
    "metrics": "every metric is the one recomputed from strategy and placement",
    "breakdown": "the components of a decode step, and of a prefill, add up to its time",
    "objective": "plan, problem and certificate name the same objective in its unit",
    "objective-value": "the objective's value and bound are those of metrics and certificate",
    "certificate-value": "the certificate's value is the objective integer recomputed",
    "bound": "the bound is not above the value",
    "gap": "gap = (value - bound) / value",
    "status": "OPTIMAL if and only if the bound equals the value, else FEASIBLE; plan and certificate agree",
    "space": "the space is the one that the problem asks for, and a plan claimed OPTIMAL lies in it",
    "alternatives": "each alternative is a plan of other degrees that holds, with its rank, value and terms as stated",
    "exhaustive-optimum": "no strategy of the space, with a placement that exists, is better than the claimed bound",
    "exhaustive-open": "no strategy of the space is left whose bound is below the claimed one and cannot be closed",
    "question": "the deployment asks what can be asked",
    "mode": "the serving mode is one of those asked for, and the certificate speaks of each of them",
    "instance-question": "the plan of a group answers the deployment's question for the group's instance size",
    "sizes": "GPUs, rate and bound of every instance size are those of its plan, and every used size is proved",
    "layout": "every instance has GPUs of its own: whole domains if it needs several, else a place inside one",
    "demand": "the requests that are asked for are served, with no more sizes per pool than asked",
    "deployment-metrics": "every sum over the instances is the one recomputed",
    "deployment-words": "the reason for idle GPUs and the warnings are the ones written again from the numbers",
    "parameters": "versions and search parameters of the whole are those of its plans, and no gap counts as none",
    "mix": "no mix of instances at their bounds is better than a mode's bound, and a mix of its plans has its value",
}
"""Every rule of the judge: id -> what it demands. Those of :data:`solver.strategy.RULES` keep their ids."""
