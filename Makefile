# canaryd. `make help` lists what there is; a fresh clone needs Python >= 3.11 and nothing else.
PYTHON ?= python3
KEEP   ?=
export PYTHON

BIN    := .venv/bin
PYTEST := $(BIN)/python -m pytest
REPORTS := .cache/reports
.DEFAULT_GOAL := help
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory
.PHONY: help demo demo-cluster test test-fast test-parts test-cluster test-cluster-all cover check format mutate bench simulate parts lock venv-demo venv-test clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: venv-demo ## three releases on real traffic, side by side, in two minutes; KEEP=1 leaves it running to play with
	@$(BIN)/python -m canaryd demo $(if $(filter-out 0,$(KEEP)),--keep)

demo-cluster: venv-demo ## the same in a real cluster and mesh, watched with kubectl, in five minutes; KEEP=1 as well
	@PYTHONPATH=tests/cluster:. $(BIN)/python -m demo $(if $(filter-out 0,$(KEEP)),--keep)

test: check ## everything, side by side: the pure core with its coverage gate, all real parts, the cluster
	@scripts/cluster-tools || [ "$$CI" != true ]
	@$(BIN)/python scripts/run_tests.py core parts cluster
	@$(BIN)/python scripts/core_coverage.py
	@$(BIN)/python scripts/test_summary.py $(REPORTS)/core.xml $(REPORTS)/parts.xml $(REPORTS)/cluster.xml

test-fast: venv-test ## the pure core alone, in seconds
	@$(PYTEST) -q tests/core

cover: venv-test ## the pure core with line and branch coverage; fails below 95 % of either
	@$(PYTEST) -q tests/core --cov=canaryd --cov-branch --cov-report= --junit-xml=$(REPORTS)/core.xml
	@$(BIN)/python scripts/core_coverage.py

test-parts: venv-test ## all tests but the core's and the cluster's: Envoy, Prometheus, files, processes, the image's steps
	@$(BIN)/python scripts/run_tests.py parts

test-cluster: venv-test ## on a real control plane and mesh; builds them the first time (needs Go, 25 min): tests/cluster/README.md
	@scripts/cluster-tools || [ "$$CI" != true ]
	@$(BIN)/python scripts/run_tests.py cluster

test-cluster-all: venv-test ## the same with the long ones: outages, quarrels, leases; CANARYD_LONG=1 for their long forms
	@scripts/cluster-tools
	@$(BIN)/python scripts/run_tests.py cluster --all

check: venv-test ## format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: venv-test ## rewrite the code the way `make check` wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

mutate: venv-test ## break the core on purpose in named ways; every one must make a test fail
	@$(BIN)/python scripts/mutate.py

bench: venv-test ## measure: help time, memory, idle CPU, decision to first request; read benchmarks/README.md
	@$(BIN)/python benchmarks/run.py

simulate: venv-test ## every published simulation, about 30 min; writes docs/statistics-tables.md
	@$(BIN)/python scripts/simulate.py

parts: ## install what no Python package brings: Prometheus, bubblewrap, ip, openssl (Debian and Ubuntu)
	@scripts/parts

lock: ## write requirements/*.txt anew from pyproject.toml; UPGRADE=1 takes the newest versions
	@scripts/lock $(if $(filter-out 0,$(UPGRADE)),--upgrade)

clean: ## remove the virtual environment and everything else that was made here
	rm -rf .venv .cache .demo .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

venv-demo:
	@scripts/venv demo

venv-test:
	@scripts/venv test
