"""What is asked: LLM, cluster, workload, calibration, problem. Hides file formats."""
