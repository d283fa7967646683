# Every target sets up what it needs in a virtual environment of its own: python3 (3.11 or newer) is enough.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The extension modules are built by the editable install: a changed source asks for another.
BUILD := pyproject.toml setup.py constraints.txt $(wildcard csrc/*.* csrc/*/*.*)

.PHONY: demo test lint format bench docs reliability clean

demo: $(VENV)/.harness
	$(BIN)/lip-fast train

# The ops again by each backend: what a GPU runs is the native arithmetic, what a machine without a compiler runs
# the default one.
KERNEL_TESTS := tests/ops tests/test_subspace.py tests/test_plugin.py tests/test_capture.py

test: lint
	$(BIN)/python -m pytest
	LIP_FAST_BACKEND=default $(BIN)/python -m pytest -q $(KERNEL_TESTS)
	LIP_FAST_BACKEND=native $(BIN)/python -m pytest -q $(KERNEL_TESTS)
	$(BIN)/python -m pytest benchmarks --benchmark-disable -q

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev
	$(BIN)/python -m pytest benchmarks --benchmark-json=benchmarks/results/cpu.json
	$(BIN)/python -m benchmarks.report benchmarks/results/cpu.json --write README.md

# What README says of reliability, counted by running it: minutes.
reliability: $(VENV)/.dev
	$(BIN)/python -m benchmarks.reliability --write README.md

# In an environment of its own, with nothing but what the pages need.
DOCS := .venv-docs
docs: $(DOCS)/.docs
	$(DOCS)/bin/python -m sphinx -W --keep-going -q -b html docs build/docs
	@echo "build/docs/index.html"

$(DOCS)/.docs: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DOCS)
	LIP_FAST_EXT=off $(DOCS)/bin/python -m pip install --quiet --constraint constraints.txt '.[docs]'
	touch $@

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.harness: $(VENV)/bin/python $(BUILD)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[harness]'
	touch $@

$(VENV)/.dev: $(VENV)/bin/python $(BUILD)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@ $(VENV)/.harness

clean:
	rm -rf $(VENV) $(DOCS) build dist lip_fast/*.so *.egg-info .pytest_cache .mypy_cache .ruff_cache
