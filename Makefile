PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python .ci/install.py
SOURCES := $(shell find csrc -type f)
FORMATTED = $(shell find csrc bench tests -name '*.h' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.cu')

.PHONY: demo test bench asan lint format wheels sdist clean venv

demo: .venv/installed
	@echo "Upscaling assets/photo.jpg, as: ape-sr upscale assets/photo.jpg -o results --exit-map"
	@$(BIN)/ape-sr upscale assets/photo.jpg -o results --exit-map
	@echo "Yours: $(BIN)/ape-sr upscale -i FILE -o results (or plain ape-sr after: . .venv/bin/activate)"

test: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --cov --cov-report=term

bench: venv
	$(BIN)/python -m pytest bench --benchmark-only

# The native core under AddressSanitizer and UndefinedBehaviorSanitizer, without CUDA, in a package of its own.
ASAN_TESTS ?= test_native test_backends test_ops test_patches test_cpu_bf16 test_rcan test_rrdb test_vdsr test_compact \
  test_ecbsr test_basicsr test_folded test_head_exit test_images test_levels test_windows test_parts \
  test_plan_statistics test_plan_tones test_reuse
asan: venv
	APE_SANITIZE=address,undefined APE_BUILD_CUDA=0 $(PIP) --no-deps --upgrade --target build/asan .
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH=build/asan \
	$(BIN)/pytest -q $(ASAN_TESTS:%=tests/kernels/%.py)

lint: .venv/dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run --Werror $(FORMATTED)
	$(BIN)/basedpyright --pythonpath $(BIN)/python

format: .venv/dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(FORMATTED)

# Of this machine's platform, without CUDA; settings in pyproject.toml. On Linux it needs docker.
wheels: | $(BIN)/python
	$(PIP) cibuildwheel==4.3.5
	$(BIN)/cibuildwheel --output-dir dist

sdist: | $(BIN)/python
	$(PIP) build==1.6.1
	$(BIN)/python -m build --sdist

clean:
	rm -rf .venv build dist *.egg-info python/*.egg-info ape_kernels/_C*.so
	rm -rf .pytest_cache .ruff_cache .hypothesis .benchmarks .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# What is there to run (installed) and to work on it (dev).
venv: .venv/installed .venv/dev

$(BIN)/python:
	@$(PYTHON) -m venv --upgrade-deps .venv

.venv/requirements: requirements.txt | $(BIN)/python
	@echo "Setting up .venv, once, in two to five minutes. First PyTorch and others: 300 MB, or some GB with CUDA."
	@echo "Linux without a GPU: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make ... leaves CUDA out."
	@$(PIP) -r requirements.txt
	@touch $@

.venv/dev: .venv/requirements requirements-dev.txt requirements-no-deps.txt
	@echo "Tools for tests and lint: 300 MB to download, about a minute."
	@$(PIP) -r requirements-dev.txt
	@$(PIP) --no-deps -r requirements-no-deps.txt
	@touch $@

.venv/installed: .venv/requirements pyproject.toml setup.py $(SOURCES)
	@echo "Then the native core: about a minute, two more with CUDA."
	@$(PIP) -e ".[sr]"
	@touch $@
