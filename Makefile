# `make help` lists the targets. Each one does its own set-up; KUBE_CONTEXT and IMAGE_REGISTRY name an
# existing cluster and a registry that it pulls from, to be used instead of the local cluster.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.NOTPARALLEL:
# Without bytecode every process that a test starts compiles transformers again.
unexport PYTHONDONTWRITEBYTECODE

PYTHON ?= $(shell for python in python3.11 python3 python3.12 python3.13 python3.14; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$python" && break; done)
RUN := .venv/bin/python
PYTEST := $(RUN) -m pytest
# Each suite names its slowest tests; ARGS="-k name" chooses some.
SUITE := $(PYTEST) --durations=15 --durations-min=2

.PHONY: help try demo test test-times ci-times test-full test-peers unit trainer integration faults e2e verify cluster cluster-down images bench-data bench-train bench-evaluate bench-serving bench-start bench-first-answer bench-model-cache bench-operator sizing evaluation-tables gpu-smoke release release-tags generate docs pictures golden format constraints clean venv-light \
	python packages-environment packages-optional packages-peers packages-shells packages prometheus programs .venv venv-keep build/docs/venv

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

try: .venv ## From rows to a served answer on this machine, without root and without a cluster; SERVE=1 keeps serving
	@$(RUN) -m tools.tryout

demo: packages .venv cluster images ## From rows to a served model on a real Kubernetes, in minutes
	@$(RUN) -m tools.demo

test: packages packages-shells prometheus .venv programs ## Every test: unit, trainer, API server, end to end on a real node; MINUTES=45 fails if they take longer
	@$(RUN) -m tools.suites $(if $(PAGE),--page) $(if $(MINUTES),--minutes $(MINUTES))

test-times: ## The same, and the times of the suites into docs/testing.md
	@$(MAKE) test PAGE=1

ci-times: packages-environment .venv ## Both for .ci/run in a fresh clone with empty caches; CACHES=folder keeps them
	@$(RUN) -m tools.suites.fresh $(if $(CACHES),--caches $(CACHES))

test-full: test ## Every test: every fault at every write of a chain, every way to resume, every method in the cluster, half an hour of Flux: two hours more
	$(PYTEST) tests/unit -m full
	$(PYTEST) tests/trainer -m full
	$(PYTEST) tests/integration -m full
	$(PYTEST) tests/faults -m full --verbose
	$(PYTEST) tests/e2e -m full
	@$(RUN) -m tools.peers install flux
	$(PYTEST) tests/peers/test_flux.py -m full

test-peers: packages packages-peers .venv programs $(if $(CACHED),,cluster images) ## What needs programs of peers, such as vLLM; the results into docs/testing.md; PEERS="kueue flux", CACHED=1, MINUTES=20, ARGS choose
	@$(RUN) -m tools.peers test $(foreach peer,$(PEERS),--peer $(peer)) $(if $(CACHED),--cached) $(if $(MINUTES),--minutes $(MINUTES)) -- $(ARGS)

unit: packages-optional venv-keep ## The tests that need no cluster, in a minute; names what this machine cannot run
	$(PYTEST) --no-fold-skipped tests/unit -m "not full" $(ARGS)

trainer: packages prometheus .venv programs ## The trainer's tests: real processes, small models; ARGS="-k resume" chooses some
	$(SUITE) tests/trainer -m "not full" $(ARGS)

integration: packages prometheus .venv programs ## The operator on a real API server; ARGS chooses
	$(SUITE) tests/integration $(ARGS)

faults: packages .venv programs ## The operator disturbed at its writes; ARGS chooses
	$(SUITE) tests/faults -m "not full" $(ARGS)

e2e: packages prometheus .venv programs ## Everything on a real node; ARGS chooses
	@$(RUN) -m tools.suites --suite e2e -- $(ARGS)

verify: packages-optional venv-keep build/docs/venv ## Generated files, lint, types, import rules, tables, charts, workflows, the site
	$(RUN) -m hack.generate --check
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m hack.typecheck
	.venv/bin/lint-imports
	$(PYTEST) --quiet tests/unit/test_tables.py
	$(RUN) -m hack.charts
	$(RUN) -m hack.workflows
	$(RUN) -m hack.license_headers
	build/docs/venv/bin/python -m tools.docs.pictures --check
	build/docs/venv/bin/python -m tools.docs

cluster: packages .venv ## A local Kubernetes, left running
	@if [ -n "$${KUBE_CONTEXT:-}" ]; then echo "Using the cluster of context $$KUBE_CONTEXT."; \
	else $(RUN) -m tools.cluster up; fi

cluster-down: packages-environment .venv ## Stop the local Kubernetes and everything in it
	@$(RUN) -m tools.cluster down
	@$(RUN) -m tools.cluster down --name second

images: packages .venv cluster ## Build the operator and trainer images and hand them to the cluster; VARIANT=cuda for GPUs
	@$(RUN) -m tools.images build $(if $(VARIANT),--variant $(VARIANT))

release: packages-environment .venv ## Push images, charts and signed statements to IMAGE_REGISTRY, verify and tag them; VARIANTS="cpu", TRIAL=1
	@$(PYTHON) -m tools.bootstrap.packages environment images
	@$(RUN) -m tools.release publish $(foreach variant,$(VARIANTS),--variant $(variant)) $(if $(TRIAL),--trial)

release-tags: packages-environment .venv ## Tag what `make release` pushed, after another program has signed it
	@$(RUN) -m tools.release tag

bench-data: packages-environment .venv ## Prepare five million rows, and compare with Hugging Face datasets; ROWS=100000 for fewer
	@$(RUN) -m tools.bench.data $(or $(ROWS),--page)

bench-train: packages-environment .venv ## Train LoRA adapters, and compare with TRL SFTTrainer; STEPS=8 for fewer
	@$(RUN) -m tools.bench.train $(or $(STEPS),--page)

bench-start: packages-environment .venv ## Time from the start of a train pod to its first step; SIZES=1B for one
	@$(RUN) -m tools.bench.start $(or $(SIZES),--page)

bench-first-answer: packages .venv cluster images ## Minutes from a CSV to an answer: on this machine, in a cluster, and with kubectl
	@$(RUN) -m tools.bench.first_answer

bench-model-cache: packages-environment .venv ## Start of a serving pod with and without the model cache; SIZES=1B for one
	@$(RUN) -m tools.bench.start.serving $(or $(SIZES),--page)

bench-evaluate: packages-environment .venv ## Answer rows of an evaluation, and compare with one row at a time
	@$(RUN) -m tools.bench.evaluate --page

bench-serving: packages packages-peers .venv programs ## Start and speed of the engines, and what an endpoint adds to vLLM; STEPS="vllm" for some
	@$(RUN) -m tools.peers.serving $(or $(STEPS),--page)

bench-operator: packages-environment .venv ## Measure the operator; SIZES="100 1000" NEIGHBOUR=2000 HISTORY="3500" choose how many runs, CROWDS="refused" which crowds
	@$(RUN) -m tools.bench.operator $(SIZES)
	@$(RUN) -m tools.bench.operator.neighbour $(NEIGHBOUR)
	@$(RUN) -m tools.bench.operator.history $(HISTORY)
	@$(RUN) -m tools.bench.operator.crowds $(CROWDS)
	@$(RUN) -m tools.bench.operator.listing

sizing: packages-environment .venv ## Predict memory and speed from 270M to 70B, into docs/sizing.md; MODELS="1B 8B" for some
	@$(RUN) -m tools.sizing $(or $(MODELS),--page)

evaluation-tables: packages-environment .venv ## Rows for a claim, and the coverage of the intervals, into docs/scores.md
	@$(RUN) -m tools.evaluation --page

docs: build/docs/venv ## The documentation as a site with search, in build/docs/html
	@build/docs/venv/bin/python -m tools.docs

pictures: build/docs/venv packages-environment .venv ## Draw docs/pictures anew; those of pages need chromium
	@build/docs/venv/bin/python -m tools.docs.pictures
	@$(RUN) -m tools.docs.reportpictures

build/docs/venv: python
	@$(PYTHON) -m tools.bootstrap.docs

gpu-smoke: packages-environment .venv ## What only a GPU can show, into docs/benchmarks.md; STEPS="method-LoRA" for some
	@PYTHONPATH=trainer_image $(RUN) -m tests.gpu $(or $(STEPS),--page)

generate: packages-optional venv-keep ## Write the files that are generated from the code
	$(RUN) -m hack.generate

golden: packages-environment .venv ## Write the expected outputs of the golden tests anew, for review
	UPDATE_GOLDEN=1 $(PYTEST) tests/unit/operator/test_reconcile_golden.py tests/trainer/test_tokens_templates.py

format: packages-optional venv-keep ## Format the code and apply safe lint fixes
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

constraints: python packages-environment ## Pin the newest dependencies that pyproject.toml and constraints/uv.in allow
	$(PYTHON) -m tools.bootstrap.constraints --upgrade

clean: cluster-down ## Remove the virtual environment, the cluster's state and what tools left here
	@$(RUN) -m tools.cluster purge
	@$(RUN) -m tools.cluster purge --name second
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist

.venv: python
	@$(PYTHON) -m tools.bootstrap.venv

venv-light: packages-optional ## A .venv without PyTorch, for changes of the operator, the charts and the docs
	@$(PYTHON) -m tools.bootstrap.venv --light

venv-keep: python
	@$(PYTHON) -m tools.bootstrap.venv --keep

packages-environment: python
	@$(PYTHON) -m tools.bootstrap.packages environment

packages-optional: python
	@$(PYTHON) -m tools.bootstrap.packages --optional environment shells

packages-peers: python
	@$(PYTHON) -m tools.bootstrap.packages environment peers

prometheus: python
	@$(PYTHON) -m tools.bootstrap.prometheus

programs:
	@$(RUN) -m tools.cluster binaries

packages: python
	@$(PYTHON) -m tools.bootstrap.packages environment images cluster

packages-shells: python
	@$(PYTHON) -m tools.bootstrap.packages shells

python:
	@[ -n "$(PYTHON)" ] || { echo "Python 3.11 or newer is needed (package python3 of the distribution)." >&2; exit 1; }
