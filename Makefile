# make demo: set up and answer "what does batch norm do to my gradient?".   make test: set up and run the suite.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
MUTATION := $(VENV)/.mutation
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: setup demo test lint format mutants clean
.DEFAULT_GOAL := help

.PHONY: help
help:
	@echo "make demo    set up, then run four studies on the digits and write runs/demo/report.html"
	@echo "make test    set up, then run the whole test suite"
	@echo "make lint    ruff, mypy and the import contracts"
	@echo "make format  let ruff put the code in order"
	@echo "make mutants ROOM=stats  which small faults in a room do its tests miss? (ARGS=--help says more)"
	@echo "make setup   .venv with the package (editable) and all that the suite needs"
	@echo "make clean   remove .venv and caches; runs/ stays"

$(STAMP): pyproject.toml constraints.txt setup.py $(wildcard src/normscope/kernels/cpu/*.cpp src/normscope/kernels/cpu/*.h)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# The constraints pin torch first of all, so that its CPU build is taken where one is offered.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

setup: $(STAMP)

demo: $(STAMP)
	$(BIN)/normscope demo

test: $(STAMP)
	@# One thread a worker: more would have them wait for one another.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

mutants: $(MUTATION)
	@test -n "$(ROOM)" || { echo "make mutants: say which room, such as ROOM=stats"; exit 2; }
	$(BIN)/python benchmarks/mutants.py $(ROOM) $(ARGS)

$(MUTATION): $(STAMP)
	@# Its own packages alone: an install of the package again would build the kernels again.
	$(BIN)/python -c "import tomllib; \
	print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['mutation'], sep='\n')" > $@.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --requirement $@.txt
	@touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis src/*.egg-info
