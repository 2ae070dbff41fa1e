# make demo: set up and answer "what does batch norm do?".   make test: set up and run the suite.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS := $(VENV)/.extras
SARIF := $(VENV)/sarif
MUTATION := $(VENV)/.mutation
DOCS := $(VENV)/.docs
PACKAGING := $(VENV)/.packaging
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: setup demo docs pages dist test test-extras test-machines lint format mutants clean
.DEFAULT_GOAL := help

.PHONY: help
help:
	@echo "make demo    set up, then compare a network with its norms and without; write runs/demo/report.html"
	@echo "make test    set up, then run the whole test suite"
	@echo "make docs    set up, then make the documentation site: build/docs/index.html"
	@echo "make lint    ruff, mypy and the import contracts"
	@echo "make format  let ruff put the code in order"
	@echo "make mutants ROOM=stats  which small faults in a room do its tests miss? (ARGS=--help says more)"
	@echo "make setup   .venv with the package (editable) and all that the suite needs"
	@echo "make pages   write the parts of README.md and docs anew that are made from the evidence and the atlas"
	@echo "make dist    the source distribution and a wheel for this machine, built from it and checked: dist"
	@echo "make clean   remove .venv and caches; runs/ stays"
	@echo "make test-extras    add ONNX, trainers and loggers (Lightning, Accelerate, TensorBoard, W&B, MLflow; 320 MB), Sphinx"
	@echo "                    (60 MB) and on Linux x86-64 Triton (286 MB) to .venv, then run the tests that need them"
	@echo "make test-machines  run the tests that train (marker trains) as other CPUs would: three instruction sets,"
	@echo "                    one thread and two; TESTS=path limits them to a folder or file"

$(STAMP): pyproject.toml constraints.txt setup.py $(wildcard src/normscope/kernels/cpu/*.cpp src/normscope/kernels/cpu/*.h)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# The constraints pin torch first of all, so that its CPU build is taken where one is offered.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

setup: $(STAMP)

demo: $(STAMP)
	$(BIN)/normscope demo

docs: $(DOCS)
	PYTHONPATH=docs $(BIN)/python -m sitemaker build/docs

$(DOCS): $(STAMP)
	@# The packages of the extra alone are added, as for test-extras.
	$(BIN)/python -c "import tomllib; \
	print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['docs'], sep='\n')" > $@.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --requirement $@.txt
	@touch $@

# The pages with marks for parts of the atlas.
ATLAS_PAGES := README.md docs/index.md docs/atlas.md

pages: $(STAMP)
	$(BIN)/normscope atlas --page build/atlas.html $(addprefix --markdown ,$(ATLAS_PAGES))
	$(BIN)/normscope report src/normscope/studies/data/evidence.json --page build/evidence.html \
	--markdown docs/evidence.md --questions docs/questions.md

dist: $(PACKAGING)
	@# The wheel is built from the source distribution, so that the source distribution is known to be whole.
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/abi3audit --strict dist/*.whl

$(PACKAGING): $(STAMP)
	$(BIN)/python -c "import tomllib; \
	print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['dist'], sep='\n')" > $@.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --requirement $@.txt
	@touch $@

test: $(STAMP)
	@# One thread a worker: more would have them wait for one another. What needs the extras, or takes minutes and
	@# guards what changes rarely, is for test-extras.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto -m "not extras and not long"

test-extras: $(EXTRAS) $(DOCS)
	@# The interpreter must be on before Triton is first imported, so the whole process has it. Triton is published for
	@# Linux on x86-64 alone; elsewhere its tests skip.
	@schema=$(SARIF)/package/lib/schemas/sarif-2.1.0-rtm.5.json; if test -f $$schema; then export SARIF_SCHEMA=$$schema; fi; \
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto -m "extras or long"

# The packages of the extra alone are added: torch and the compiled kernels stay as they are.
$(EXTRAS): $(STAMP)
	$(BIN)/python -c "import tomllib; \
	print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['extras'], sep='\n')" > $@.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --requirement $@.txt
	@# The schema of the SARIF standard comes with a package of npm's; without npm its tests skip and say so.
	@mkdir -p $(SARIF) && cd $(SARIF) && npm pack --silent @microsoft/jest-sarif@1.0.0-beta.0 > /dev/null 2>&1 \
	&& tar -xzf microsoft-jest-sarif-*.tgz || echo "no schema of SARIF: npm is missing or did not fetch it"
	@touch $@

# What torch computes with instead of the best that this CPU has; the empty name is the best.
test-machines: $(STAMP)
	@for capability in default avx2 ""; do for threads in 1 2; do \
	echo "== ATEN_CPU_CAPABILITY=$${capability:-of this CPU} OMP_NUM_THREADS=$$threads"; \
	if test -n "$$capability"; then export ATEN_CPU_CAPABILITY=$$capability; else unset ATEN_CPU_CAPABILITY; fi; \
	OMP_NUM_THREADS=$$threads $(BIN)/python -m pytest -q -m trains $(TESTS) || exit 1; \
	done; done

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
