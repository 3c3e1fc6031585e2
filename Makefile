PYTHON ?= python3
BIN := .venv/bin
SOURCES := $(shell find csrc -type f)
FORMATTED = $(shell find csrc bench -name '*.h' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.cu')

.PHONY: demo test bench asan lint format clean venv

demo: venv
	$(BIN)/ape-sr upscale -i assets/photo.png -o results -s 4 --exit-map

test: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

bench: venv
	$(BIN)/python -m pytest bench --benchmark-only

# The native core under AddressSanitizer and UndefinedBehaviorSanitizer, without CUDA, in a package of its own.
ASAN_TESTS ?= test_native test_backends test_ops test_patches test_cpu_bf16 test_rcan test_rrdb test_vdsr test_compact \
  test_ecbsr test_basicsr test_folded test_head_exit
asan: venv
	APE_SANITIZE=address,undefined APE_BUILD_CUDA=0 $(BIN)/python -m pip install -q --no-deps --upgrade --target build/asan .
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH=build/asan \
	$(BIN)/pytest -q $(ASAN_TESTS:%=tests/kernels/%.py)

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
