# Every target sets up what it needs in a virtual environment of its own: python3 (3.11 or newer) is enough.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The extension modules are built by the editable install: a changed source asks for another.
BUILD := pyproject.toml setup.py constraints.txt $(wildcard csrc/*.* csrc/*/*.*)

.PHONY: demo test test-all test-rest lint format bench bench-compare same-bits bench-rows bench-sharded docs reliability clean

demo: $(VENV)/.harness
	$(BIN)/lip-fast train --data digit-pairs --features random-relu:512 --model linear --batch-size 256 --epochs 14 \
		--lr 1e-3 --rank 20 --start 200 --decay null --methods plain in-step auto

# A process for each core, one thread in each: the tests are many and small. A file stays in one process.
# What is compiled is kept, whatever the shell says: the stages collect the same files, and start programs of them.
PYTEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n logical --dist loadfile

# Minutes: style, types, and all tests but those marked `process`, of which the few marked `smoke` run nevertheless.
test: lint
	$(PYTEST) -q -m "not process or smoke"

test-all: test test-rest

# Ops that have a native kernel for a CPU. Their tests run again with each backend: a GPU runs the native arithmetic,
# a machine without a compiler the default one.
NATIVE_OPS := finish_svd fresh_columns label_sums rebuild_ refit tail_svd warm_svd
NATIVE_TESTS := $(NATIVE_OPS:%=tests/ops/test_%.py) tests/test_directions.py tests/test_plugin.py tests/test_capture.py

# Ops that have a Triton kernel, which all run in Triton's interpreter.
TRITON_OPS := class_sums gram label_sums project rebuild_
TRITON_TESTS := tests/triton_kernels $(TRITON_OPS:%=tests/ops/test_%.py) tests/optim/test_fused.py tests/optim/test_fused_by_products.py tests/distributed/test_fused.py tests/test_statistics.py

# What a CUDA machine with torch 2.11 has: there the kernels are to compile too.
OLD_TRITON := 3.6.0

# What `make test` leaves out. In the order of their names: the longest are not of the files with the most tests.
test-rest: $(VENV)/.dev $(VENV)/triton-$(OLD_TRITON)
	$(PYTEST) -q -m "process and not smoke" --no-loadscope-reorder
	TRITON_INTERPRET=1 LIP_FAST_BACKEND=triton $(PYTEST) -q $(TRITON_TESTS)
	LIP_FAST_BACKEND=default $(PYTEST) -q $(NATIVE_TESTS)
	LIP_FAST_BACKEND=native $(PYTEST) -q $(NATIVE_TESTS)
	PYTHONPATH=$(VENV)/triton-$(OLD_TRITON) $(BIN)/python -m pytest -q tests/triton_kernels/test_compiles.py
	$(PYTEST) -q benchmarks --benchmark-disable

$(VENV)/triton-$(OLD_TRITON): $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --no-deps --target $@ triton==$(OLD_TRITON)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev
	$(BIN)/python -m pytest benchmarks --benchmark-quiet --benchmark-json=benchmarks/results/cpu.json
	$(BIN)/python -m benchmarks.report benchmarks/results/cpu.json --write README.md --details docs/benchmarks.md

# Some of its rows, with all that was measured of them: make bench-rows ROWS='truncated-*-1000x2048'
ROWS ?= truncated-*
bench-rows: $(VENV)/.dev
	$(BIN)/python -m pytest benchmarks --benchmark-quiet --rows '$(ROWS)'

# Two commits side by side on this machine: make bench-compare BASE=v0.1.0 (HEAD=..., ARGS="--rows 'truncated-*'")
bench-compare: $(VENV)/.dev
	$(BIN)/python -m benchmarks.compare $(BASE) $(HEAD) $(ARGS)

# Does this checkout compute the same bits as a commit? make same-bits BASE=v0.1.0 (HEAD=..., ARGS="--cases 'auto/*'")
same-bits: $(VENV)/.dev
	$(BIN)/python -m benchmarks.same_bits $(BASE) $(HEAD) $(ARGS)

# Heads sharded over processes of this machine, and what they cost at scale on paper.
bench-sharded: $(VENV)/.dev
	$(BIN)/python -m benchmarks.sharded --write README.md
	$(BIN)/python -m benchmarks.scale --write docs/scaling.md

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
