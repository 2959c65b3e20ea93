# What people and CI type. Every target sets up what it lacks; `make` alone lists them.

PYTHON_BIN := .venv/bin/python
SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# For every vLLM engine started from here: little memory, no telemetry, no hub. Set any to override.
VLLM_CPU_KVCACHE_SPACE ?= 1
VLLM_LOGGING_LEVEL ?= WARNING
VLLM_NO_USAGE_STATS ?= 1
DO_NOT_TRACK ?= 1
HF_HUB_OFFLINE ?= 1
TOKENIZERS_PARALLELISM ?= false
export VLLM_CPU_KVCACHE_SPACE VLLM_LOGGING_LEVEL VLLM_NO_USAGE_STATS DO_NOT_TRACK HF_HUB_OFFLINE \
	TOKENIZERS_PARALLELISM

.PHONY: help setup models smollm2 lint fast docs docs-pages check engine test exhaustive demo train-demo bench evidence \
	evidence-smoke format play

help:  ## list the targets
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/\1|\2/p' $(MAKEFILE_LIST) | \
		while IFS='|' read -r name text; do printf '  make %-14s %s\n' "$$name" "$$text"; done

setup:  ## make .venv (PYTHON=... to choose the interpreter)
	@scripts/setup.sh

models: setup  ## fetch the two small real models, once
	@$(PYTHON_BIN) -m pad_vllm models

smollm2: setup
	@$(PYTHON_BIN) -m pad_vllm models smollm2-135m

lint: setup  ## ruff, mypy and the direction of imports
	@$(PYTHON_BIN) -m ruff check --quiet .
	@$(PYTHON_BIN) -m ruff format --check --quiet . || \
		{ echo "ruff format would change the files above: run make format" >&2; exit 1; }
	@$(PYTHON_BIN) -m mypy --no-error-summary
	@said=$$(.venv/bin/lint-imports 2>&1) || { echo "$$said" >&2; exit 1; }

# Two processes, a file each at a time; engine files come first, so that the short ones fill the end.
PYTEST := $(PYTHON_BIN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

fast: setup  ## the tests that start no engine
	@$(PYTEST) -m "not engine and not exhaustive"

docs: setup  ## build the site into build/site; a warning is an error
	@NO_MKDOCS_2_WARNING=1 $(PYTHON_BIN) -m mkdocs build --strict --quiet

docs-pages: setup  ## fill pages and charts with what the package and the results say
	@$(PYTHON_BIN) -m docs.hooks.filled_blocks
	@$(PYTHON_BIN) -m docs.hooks.charts

check: lint docs fast  ## lint, the site and fast tests: before every commit

engine: setup smollm2  ## the tests that start real vLLM engines
	@$(PYTEST) -m "engine and not exhaustive"

test: setup smollm2  ## fast and engine tests, in one run
	@$(PYTEST) -m "not exhaustive"

exhaustive: setup models  ## load tests of minutes each: thousands of requests
	@$(PYTEST) -m exhaustive

demo: setup smollm2  ## see the same prompt under different preferences (BASE=qwen2.5-coder-0.5b: a better base)
	@$(PYTHON_BIN) examples/demo.py $(if $(BASE),--base $(BASE))

play: setup smollm2  ## a server with a page: sliders, answers side by side, a profile of you (FLAGS=--open)
	@$(PYTHON_BIN) -m pad_vllm play $(FLAGS)

train-demo: setup smollm2  ## train an adapter on a small slice and serve it, in minutes
	@$(PYTHON_BIN) examples/train_demo.py

bench: setup smollm2  ## time PAD against plain vLLM
	@$(PYTHON_BIN) -m benchmarks.speed.step_time

evidence: setup smollm2  ## make every result again, PROMPTS=FILE; hours, goes on where it stopped
	@$(PYTHON_BIN) -m benchmarks.evidence $(if $(PROMPTS),--prompts $(PROMPTS)) --out evidence

evidence-smoke: setup smollm2  ## a slice of each
	@$(PYTHON_BIN) -m benchmarks.evidence --smoke --out evidence-smoke

format: setup  ## let ruff put the code in order
	@$(PYTHON_BIN) -m ruff check --quiet --fix .
	@$(PYTHON_BIN) -m ruff format --quiet .
