# Checks that need more than the test suite. CHECKS is a prepared environment with the launchers' Python sources and
# parsers (about 1.6 GB), CONFIGS a folder of Hugging Face config.json files; see docs/export.md.
PYTHON ?= .venv/bin/python
CHECKS ?= ../shared/launchers/checks
CONFIGS ?= ../shared/data/hf_configs
WORK ?= /tmp/shardwright-launcher-checks
RAY_PYTHON ?=

.PHONY: launcher-checks
launcher-checks:
	$(PYTHON) benchmarks/launcher_checks.py --checks $(CHECKS) --configs $(CONFIGS) --work $(WORK)
	$(PYTHON) benchmarks/launcher_processes.py --checks $(CHECKS) --plans $(WORK)/plans $(if $(RAY_PYTHON),--ray $(RAY_PYTHON))

# A Ray cluster of two nodes on this machine: the same bytes as local processes, also when a node is killed. Extra `ray`.
.PHONY: ray-tests
ray-tests:
	$(PYTHON) benchmarks/sweeps.py ray
