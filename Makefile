# `make` lists what there is. Everything runs in .venv, which the first target that needs it makes.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export BENTOML_DO_NOT_TRACK = True

.DEFAULT_GOAL := help
.PHONY: help install demo serve check fix test bench bench-images loras lock clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

install: $(READY)  ## Make .venv with every dependency, pinned

$(READY): pyproject.toml requirements/cpu.txt requirements/install.sh
	$(PYTHON) -m venv $(VENV)
	sh requirements/install.sh $(VENV)
	@touch $@

demo: $(READY)  ## Evaluate three sample proposals, draw a storyboard, then stop
	$(BIN)/python -m models pull
	$(BIN)/python -m examples.demo

serve: $(READY)  ## Run the whole system on port 3000 until Ctrl-C
	$(BIN)/python -m models pull
	$(BIN)/python -m bentos serve

check: $(READY)  ## Lint, types, import rules, spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

fix: $(READY)  ## Format, and repair what can be repaired
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: $(READY)  ## Every test, with a real vLLM and a real PostgreSQL
	$(BIN)/python -m pytest

bench-images: $(READY)  ## Images a minute against the stock pipeline, one run
	$(BIN)/python -m loadtests.benchmarks.images

bench: $(READY)  ## Benchmarks: a table for people, one JSON line for machines
	$(BIN)/python -m models pull
	$(BIN)/python -m loadtests.benchmarks

LORAS := ink blueprint sepia
loras: $(READY) $(LORAS:%=lora-%)  ## Train the three style LoRAs again, compare and publish them

lora-%: $(READY)
	$(BIN)/python -m models.sketch.styles $* .run/loras/panels/$*
	$(BIN)/python -m models.training dataset prepare .run/loras/panels/$* .run/loras/data/$* \
	  --trigger "$* style" --resolution 147
	$(BIN)/python -m models.training config check models/training/styles/$*.yaml
	$(BIN)/python -m models.training train models/training/styles/$*.yaml
	$(BIN)/python -m models.training compare models/training/styles/$*.yaml --seeds 4
	mkdir -p docs/loras
	for kind in html png json; do cp .run/loras/$*/compare/compare.$$kind docs/loras/$*.$$kind; done
	$(BIN)/python -m models.training publish $* --from models/training/styles/$*.yaml --catalog

lock: $(READY)  ## Pin the newest versions that pyproject.toml allows
	sh requirements/lock.sh $(BIN)/uv

clean:  ## Remove what the other targets made here
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .run
