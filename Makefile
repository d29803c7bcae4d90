# Everything sets itself up; all you need is Python >= 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.DEFAULT_GOAL := help
.PHONY: help install demo run test test-minimum docs model enumerate sim ablations chaos fuzz mutants mutants-all bench bench-size check format lint types migrate requirements clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' Makefile

install: $(VENV)/.dev ## make .venv with everything that tests and checks need

demo: $(VENV)/.run ## seven stories with real processes, or one of them: make demo STORY=6
	@$(BIN)/python -m examples.demo $(STORY)

run: $(VENV)/.run ## the coordinator and the example services, until Ctrl-C
	@$(BIN)/python -m examples.run

test: $(VENV)/.dev ## all tests
	@$(BIN)/python -m pytest -n auto --dist worksteal

test-minimum: $(VENV)-minimum/.made ## the SDK's tests with the oldest versions that participants/pyproject.toml admits
	@PYTHONPATH=participants $(VENV)-minimum/bin/python -m pytest -q -n auto --dist worksteal tests/participant $(ARGS)

docs: $(VENV)/.dev ## every command of README and quickstart, pasted in an empty folder: minutes, needs the network
	@$(BIN)/python -m pytest -m slow tests/docs

SEEDS ?= 2000
FIRST ?= 1
sim: $(VENV)/.dev ## simulate replicas and participants under faults, from seeds: SEEDS= FIRST=, or SEED= to replay one
	@$(BIN)/python -m tests.simulation --seeds $(SEEDS) --first $(FIRST) $(if $(SEED),--seed $(SEED))

ablations: $(VENV)/.dev ## the same with each safeguard removed in turn: which seed notices (ARGS='--help' for more)
	@$(BIN)/python -m tests.simulation.ablations $(ARGS)

MINUTES ?= 2
REPLICAS ?= 3
CLIENTS ?= 128
SEED ?=
chaos: $(VENV)/.dev ## real processes under load, killed, frozen, cut off and out of disk, and checked: MINUTES= REPLICAS= CLIENTS= SEED=
	@$(BIN)/python -m tests.chaos --minutes $(MINUTES) --replicas $(REPLICAS) --clients $(CLIENTS) --seed "$(SEED)"

model: $(VENV)/.dev ## search all states of the protocol's model, and find its seeded bugs (needs spin and gcc)
	@$(BIN)/python -m tests.model

ONLY ?=
enumerate: $(VENV)/.dev ## every state of all pairs of kinds of branches, and of some triples: long; ONLY= part of a case's name
	@$(BIN)/python -m tests.protocol --only "$(ONLY)"

TIMES ?= 20
fuzz: $(VENV)/.dev ## random bad input, TIMES= as much as in `make test`
	@FUZZ_TIMES=$(TIMES) $(BIN)/python -m pytest tests/fuzz -q

mutants: $(VENV)/.mutants ## mutate both state machines, and see the tests find each mutant: minutes
	@$(BIN)/python -m tests.mutation

EVERY ?= 1
mutants-all: $(VENV)/.mutants ## the same for storage, engine, calling and the SDK too: hours; ONLY= part of a path, EVERY= a sample
	@$(BIN)/python -m tests.mutation --all --record --only "$(ONLY)" --every $(EVERY) $(ARGS)

bench: $(VENV)/.bench ## measure, check, compare: docs/benchmarks (ARGS='--help' for more)
	@$(BIN)/python -m tests.benchmark $(ARGS)

bench-size: $(VENV)/.bench ## the same with ten million finished transactions: half an hour, 20 GB
	@$(BIN)/python -m tests.benchmark --rows 10_000_000 $(ARGS)

check: lint types test ## everything that must pass before a commit

format: $(VENV)/.dev ## rewrite the code in the house style
	@$(BIN)/ruff check --quiet --fix-only . && $(BIN)/ruff format --quiet .

lint: $(VENV)/.dev ## style, and which module may import which
	@$(BIN)/ruff check --quiet . && $(BIN)/ruff format --quiet --check . && $(BIN)/lint-imports --no-logo

types: $(VENV)/.dev ## mypy --strict
	@$(BIN)/mypy

migrate: $(VENV)/.run ## upgrade the database at HOLDFAST_DATABASE_URL to the newest schema
	@$(BIN)/python -m app migrate

requirements: $(VENV)/.dev ## upgrade and pin what pyproject.toml asks for, with hashes
	@$(PIP) uv
	@for group in run dev bench mutants; do $(BIN)/uv pip compile --quiet --universal --generate-hashes --upgrade --no-header \
	  --no-emit-index-url --python-version 3.11 --group pyproject.toml:$$group --output-file requirements/$$group.txt; done
	@$(BIN)/uv pip compile --quiet --universal --generate-hashes --upgrade --no-header --no-emit-index-url --python-version 3.11 \
	  --resolution lowest-direct participants/pyproject.toml --group pyproject.toml:minimum --output-file requirements/minimum.txt

clean: ## remove .venv and everything else that make created
	rm -rf $(VENV) $(VENV)-minimum .run build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .schemathesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Holdfast needs Python 3.11 or newer; choose one: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.run: requirements/run.txt participants/pyproject.toml participants/holdfast/version.py | $(BIN)/python
	@echo "Installing what Holdfast runs on into $(VENV) ..."
	@$(PIP) --require-hashes -r requirements/run.txt
	@$(PIP) --no-deps --no-build-isolation --editable participants
	@touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.run
	@echo "Installing what tests and checks need into $(VENV) ..."
	@$(PIP) --require-hashes -r requirements/dev.txt
	@touch $@

$(VENV)-minimum/.made: requirements/minimum.txt | $(BIN)/python
	@echo "Installing the oldest versions that the SDK admits into $(VENV)-minimum ..."
	@$(PYTHON) -m venv $(VENV)-minimum
	@$(VENV)-minimum/bin/python -m pip --disable-pip-version-check install --quiet --require-hashes -r requirements/minimum.txt
	@touch $@

$(VENV)/.bench: requirements/bench.txt $(VENV)/.dev
	@echo "Installing what the benchmark draws with into $(VENV) ..."
	@$(PIP) --require-hashes -r requirements/bench.txt
	@touch $@

$(VENV)/.mutants: requirements/mutants.txt $(VENV)/.dev
	@echo "Installing what makes mutants into $(VENV) ..."
	@$(PIP) --require-hashes -r requirements/mutants.txt
	@touch $@
