# make demo: set up and turn the bundled photo into clay.   make test: set up and run the tests.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: demo test lint check long wheel clean

demo: .venv/run
	$(BIN)/python -m claygraph out=outputs/demo

test: .venv/dev lint
	$(BIN)/python -m pytest

long: .venv/dev
	$(BIN)/python -m pytest -m long

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy claygraph stages

wheel: .venv/dev
	$(BIN)/python -m build --wheel

# torch by its exact version first: a range would let pip take a build with gigabytes of CUDA packages
.venv/run: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch==2.13.0
	$(PIP) --editable .
	touch $@

# k-diffusion without what it depends on: only its samplers are compared with ours, and torchvision breaks this torch
.venv/dev: .venv/run
	$(PIP) --editable '.[dev]'
	$(PIP) --no-deps k-diffusion
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
