"""The claims of the project's founding document, so that ``check`` without a file audits them."""

from __future__ import annotations

from solver.audit.claims import Claims, Facts


def reference_claims() -> Claims:
    """What "Optimal LLM Parallel Strategy for 30B MoE Model" states and claims about EP64-TP8-PP2-DP2."""
    facts = Facts(
        num_layers=16, num_experts=64, expert_width=2048, hidden_size=1024, num_heads=16, head_dim=64, dtype="fp16",
        num_gpus=2048, peak_flop_per_s=400e12, memory_bandwidth_bytes_per_s=1.8e12, bandwidth_utilization=0.8,
        gpu_memory_bytes=64e9, batch_size=128, sequence_min=128, sequence_max=10240, is_moe=True,
    )  # fmt: skip
    return Claims(
        source="Optimal LLM Parallel Strategy for 30B MoE Model",
        label="EP64-TP8-PP2-DP2",
        num_gpus=2048,
        product_equation=True,
        unlimited_gpus=True,
        declared_parameters=30_000_000_000,
        weight_bytes=60e9,
        memory_per_gpu_bytes=29.3e6,
        memory_utilization=0.00046,
        kv_cache_counted=False,
        sequences_per_gpu=64,
        experts_per_gpu=1,
        layers_per_stage=8,
        expert_balanced=True,
        layer_balanced=True,
        batch_balanced=True,
        all_to_all_count=128,
        all_reduce_count=16,
        send_recv_count=1,
        communication_factor=145,
        latency_reduction=2,
        throughput_increase=2,
        pipeline_cuts_latency=True,
        pipeline_removes_bubbles=True,
        tensor_parallel_cuts_latency=True,
        mfu=0.6,
        ready=True,
        recommendations=(
            "Hierarchical All-Reduce: tree-based reduction",
            "Dynamic Load Balancing: adjust the expert assignment",
            "Memory Prefetching: load the parameters of upcoming layers",
            "Communication Compression: less bandwidth for all-to-alls",
        ),
        missing_inputs=(
            "top_k", "matrices_per_expert", "vocab_size", "num_kv_heads", "interconnect", "node_size", "output_length",
            "slo", "arrival_rate",
        ),
        facts=facts,
    )  # fmt: skip
