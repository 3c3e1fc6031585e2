PYTHON ?= python3
BIN := .venv/bin
SOURCES := $(shell find csrc -type f)
FORMATTED = $(shell find csrc -name '*.h' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.cu')

.PHONY: demo test bench lint format clean venv

demo: venv
	$(BIN)/ape-sr upscale -i assets/photo.png -o results -s 4 --exit-map

test: venv
	$(BIN)/python -m pytest

bench: venv
	$(BIN)/python -m pytest bench --benchmark-only

lint: venv
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run --Werror $(FORMATTED)

format: venv
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(FORMATTED)

clean:
	rm -rf .venv build dist *.egg-info python/*.egg-info ape_kernels/_C*.so
	rm -rf .pytest_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

venv: .venv/installed

.venv/requirements: requirements.txt requirements-no-deps.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -r requirements.txt
	$(BIN)/python -m pip install --no-deps -r requirements-no-deps.txt
	touch $@

.venv/installed: .venv/requirements pyproject.toml setup.py $(SOURCES)
	$(BIN)/python -m pip install -e .
	touch $@
