# The commands of the project; `make help` lists them. PYTHON names the interpreter to build .venv with.

PYTHON ?= python3
PIP_OPTIONS ?=
# What is imported is compiled once and kept: without that, each of a test's many processes compiles torch again (5 s of CPU time).
unexport PYTHONDONTWRITEBYTECODE
BIN := .venv/bin
# Three workers on two cores, since many tests wait for ranks to end. Each takes a file at a time, in order: the long ones are in folders, which come first.
PYTEST = $(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder
STAMP := .venv/.installed
PIP = $(BIN)/python -m pip install -q --no-compile --disable-pip-version-check $(PIP_OPTIONS) -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help install test long soak kernels lint golden demo docs gallery clean

help:  ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## make .venv and install the package with all it needs for tests

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) was not found; install Python 3.11 or newer, or name it: make install PYTHON=..."; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $(PYTHON) is $$($(PYTHON) -V 2>&1), but Python 3.11 or newer is needed; name one: make install PYTHON=python3.11"; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "make: $(PYTHON) cannot make virtual environments; run: apt-get install python3-venv"; exit 2; }
	@echo "making .venv with $$($(PYTHON) -V)"
	@$(PYTHON) -m venv .venv

$(STAMP): setup.py pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing torch (the first time this takes a few minutes)"
	@$(PIP) torch
	@echo "installing csrec_dist and what it needs"
	@$(PIP) -e '.[test,dev]'
	@touch $@

test: install  ## run the tests
	@$(PYTEST)

long: install  ## run the long tests too: all exports, layouts, examples and benchmarks
	@CSREC_LONG_TESTS=1 $(PYTEST)

soak: install  ## kill runs anywhere and resume them: RUNS=50 of them, and TRIALS=100 starts that must end
	@CSREC_LONG_TESTS=1 CSREC_SOAK_RUNS=$(or $(RUNS),50) CSREC_END_TRIALS=$(or $(TRIALS),100) \
		$(BIN)/python -m pytest -q -s tests/test_kills.py tests/test_ends.py

kernels: install  ## compile the GPU's kernels under Triton 3.6 and the installed version, without a GPU
	@$(BIN)/python -m pip install -q --disable-pip-version-check --upgrade --target build/triton-3.6 triton==3.6.0
	PYTHONPATH=build/triton-3.6:. $(BIN)/python -m tests.helpers.compiled_kernels --check
	$(BIN)/python -m tests.helpers.compiled_kernels --check

lint: install  ## check style, format, types and what bandit knows of unsafe calls
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/bandit --quiet --configfile pyproject.toml --recursive csrec_dist

golden: install  ## say which numbers have moved since BASE=<commit> (in HEAD=<commit>, or the working tree)
	@$(BIN)/python -m tests.golden.compare $(BASE) $(HEAD)

demo: install  ## train CSRec-M with GRU4Rec on MovieLens-100K, on two processes
	@$(BIN)/csrec-dist fetch ml-100k
	$(BIN)/accelerate launch --config_file configs/accelerate/cpu_2.yaml -m csrec_dist run --config configs/experiments/demo.yaml

docs: install  ## build the documentation's site into site/, with its links checked
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "the site is in site/index.html"

gallery: install  ## make the reports of docs/gallery again (some minutes)
	@PYTHON=$(abspath $(BIN)/python) examples/gallery.sh

clean:  ## remove .venv and caches; runs and data stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache build dist site *.egg-info
	find csrec_dist tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
