# One command per need; hosted CI calls the same targets. Python 3.11, make and pip are all that is needed.
.DEFAULT_GOAL := help
SHELL := /bin/bash

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help install demo test test-fast checks format bench bench-quick bench-gpu wheel clean

help: ## show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

install: $(INSTALLED) ## make .venv with dreamfleet and the development tools in it

# The stamp is newer than what it was made from, so a second `make install` does nothing.
$(INSTALLED): pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "dreamfleet needs Python 3.11 or newer, %s is %d.%d; try make PYTHON=/path/to/python3.11" % (sys.executable, *v[:2]))'
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: install ## the whole loop on one example subject, into runs/demo: personalise, sweep, register, serve, compare (minutes)
	$(BIN)/dreamfleet personalize --config pipelines/recipes/demo.yaml --overwrite
	$(BIN)/dreamfleet launch --config pipelines/recipes/demo_sweep.yaml --overwrite --once --no-open --port 0
	$(BIN)/dreamfleet runs runs/demo runs/demo/sweep/champion
	@printf '%-10s%s\n' report runs/demo/report.html pictures runs/demo/samples/ sweep runs/demo/sweep/report.html \
	  champion runs/demo/sweep/champion/ served runs/demo/sweep/champion/served.png

test: install ## all tests but the slow and the GPU ones
	$(BIN)/python -m pytest -n 2 --dist loadgroup --durations=15 -m "not slow and not gpu"

test-fast: install ## unit tests only: no Ray, under a minute
	$(BIN)/python -m pytest -n 2 tests/unit -m "not slow and not gpu and not integration and not heavy"

checks: install ## lint, format, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install ## format the code
	$(BIN)/ruff check --fix-only --exit-zero .
	$(BIN)/ruff format .

bench: install ## all benchmarks, into docs/benchmarks.md (on a quiet machine)
	$(BIN)/python pipelines/run_benchmarks.py

bench-quick: install ## the benchmarks of the table only (six minutes on two cores)
	$(BIN)/python pipelines/run_benchmarks.py --quick

bench-gpu: install ## the same table at SD1.5's shape on a GPU, into docs/benchmarks_gpu.md
	$(BIN)/python pipelines/run_benchmarks.py --gpu

wheel: install ## build dist/dreamfleet-<version>-py3-none-any.whl
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist .

clean: ## remove builds and caches; .venv and runs/ stay
	rm -rf build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -type d -prune -exec rm -rf {} +
