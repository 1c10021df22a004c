# `make demo` and `make test` set up what they need in .venv; nothing else has to be installed than Python 3.11 or newer
# (`make PYTHON=python3.12 test` picks one) and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STEPS ?= 5000
export MUJOCO_GL ?= disable

.PHONY: gpu demo test test-fast test-ray lint types imports wheel docs check release bench-smoke bench clean

# A strict editable install: the type checker and import-linter see the adapters under synther_buffers.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	# PyTorch first and alone, at the pinned version; the rest must not bring another.
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --config-settings editable_mode=strict --editable ".[dev]"
	touch $@

demo: $(VENV)/.installed
	$(BIN)/python examples/demo.py --steps $(STEPS)

# One thread for each of two workers: two processes with two threads each are slower than one.
test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

test-fast: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal -m "not slow"

# An optional group, with clusters on the loopback: Ray is large, and its tests take minutes.
test-ray: $(VENV)/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt ray
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m ray

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

types: $(VENV)/.installed
	$(BIN)/mypy

imports: $(VENV)/.installed
	$(BIN)/lint-imports
	$(BIN)/python tests/planted_import.py

wheel: $(VENV)/.installed
	$(BIN)/python tests/wheel_check.py

docs: $(VENV)/.installed
	$(BIN)/python -m sphinx -n -W --keep-going -q docs build/docs

check: test lint types imports wheel docs bench-smoke

# The wheel and the source distribution in dist/, as they would be uploaded.
release: check
	rm -rf dist
	$(BIN)/pip install --quiet build twine
	$(BIN)/python -m build --outdir dist .
	$(BIN)/twine check --strict dist/*

# Every benchmark in a small size; that of learning is one of the tests.
bench-smoke: $(VENV)/.installed
	$(BIN)/python benchmarks/import_time.py --toy --out build/bench/import_time.json
	$(BIN)/python benchmarks/buffer_overhead.py --toy --out build/bench/buffer_overhead.json
	$(BIN)/python benchmarks/refresh.py --toy --out build/bench/refresh.json
	$(BIN)/python benchmarks/terminals.py --toy --out build/bench/terminals.json
	$(BIN)/python benchmarks/joint_structure.py --toy --out build/bench/joint_structure.json
	$(BIN)/python benchmarks/known_rewards.py --toy --out build/bench/known_rewards.json
	$(BIN)/python benchmarks/policy_rows.py --toy --out build/bench/policy_rows.json
	$(BIN)/python benchmarks/guided_rows.py --toy --out build/bench/guided_rows.json
	rm -f build/bench/few_rows.jsonl
	$(BIN)/python benchmarks/few_rows.py --toy --out build/bench/few_rows.jsonl
	$(BIN)/python benchmarks/precision.py --toy --out build/bench/precision.json
	$(BIN)/python benchmarks/training_step.py --toy --out build/bench/training_step.json
	$(BIN)/python benchmarks/published.py --toy --out build/bench/published.json
	$(BIN)/python benchmarks/fidelity_cost.py --toy --models build/bench/models --out build/bench/fidelity_cost.jsonl
	rm -f build/bench/augmentation_comparison.jsonl build/bench/offline_upsampling.jsonl
	$(BIN)/python benchmarks/augmentations.py --toy --out build/bench/augmentation_comparison.jsonl \
		--report build/bench/augmentation_table.md --picture build/bench/augmentation_comparison.png
	$(BIN)/python examples/offline_upsampling.py --toy --seeds 1 --arms full subset synther --learners iql --cache build/bench/offline_upsampling \
		--out build/bench/offline_upsampling.jsonl
	$(BIN)/python examples/offline_upsampling.py --out build/bench/offline_upsampling.jsonl --report build/bench

# Many hours. The data are files of examples/collect.py, REPLAY of so many steps and OFFLINE up to a return; the comparison
# with the published code runs where SOURCE is a clone of it.
REPLAY ?= $(wildcard data/*-50000-s0.npz)
OFFLINE ?= $(wildcard data/*-medium-replay-s1.npz)
SOURCE ?=
bench: $(VENV)/.installed
	$(BIN)/python benchmarks/import_time.py
	$(BIN)/python benchmarks/buffer_overhead.py
	$(BIN)/python benchmarks/refresh.py
	$(BIN)/python benchmarks/terminals.py
	$(BIN)/python benchmarks/joint_structure.py
	$(BIN)/python benchmarks/known_rewards.py
	$(BIN)/python benchmarks/precision.py
	$(BIN)/python benchmarks/training_step.py --compile
	$(BIN)/python benchmarks/published.py $(if $(SOURCE),--source $(SOURCE))
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/fidelity_cost.py --data $(REPLAY)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/fidelity_cost.py --data $(REPLAY) --timing
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/augmentations.py --data $(REPLAY)
	$(BIN)/python examples/offline_upsampling.py --data $(OFFLINE)
	$(BIN)/python examples/offline_upsampling.py --report
	$(BIN)/python benchmarks/tables.py
	$(BIN)/python -m benchmarks.learning --prepare
	$(BIN)/python -m benchmarks.learning --stage a --report

# What has to travel to a machine with a GPU and no network, and the command to run there.
gpu: $(VENV)/.installed
	$(BIN)/python benchmarks/gpu.py --prepare

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
