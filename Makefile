# `make demo` and `make test` do all their own set-up: they need Python 3.11+, pip and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DATA ?=
RATE ?= 250
OUT ?= demo-out
KILLS ?=
SEEDS ?= 0
SOAK_S ?= 1800
RHEOS_DATA_DIR ?= ../shared/data
export RHEOS_DATA_DIR
# Schemathesis' plugin imports, when a session ends, so much that CPython 3.11 now and then fails to
# parse it ("AST constructor recursion depth mismatch"), and a green run with it.
PYTEST := $(BIN)/pytest -p no:schemathesis
# Files of tests that need no Ray run side by side, each on one thread.
PARALLEL := OMP_NUM_THREADS=1 $(PYTEST) --numprocesses=logical --maxprocesses=8 --dist=loadfile
# Its tests share one name, of which pytest-xdist would run one only.
ONE_BY_ONE := tests/http/test_schemathesis.py

.PHONY: help demo test check unit http load actor durability e2e chaos soak up down bench setup clean

help: ## Show what can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

setup: $(READY) ## Make .venv with the tested versions

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	touch $(READY)

demo: $(READY) ## The main job: make demo [DATA=folder or name] [RATE=events/s] [OUT=folder]
	$(BIN)/rheos demo $(if $(DATA),--data '$(DATA)') --rate $(RATE) --out '$(OUT)'

test: check e2e chaos ## Everything CI runs

check: $(READY) ## Lint, types, imports, unit, HTTP, actor and durability tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PARALLEL) --ignore=$(ONE_BY_ONE) tests/unit tests/http tests/durability
	$(BIN)/pytest $(ONE_BY_ONE)
	$(PYTEST) tests/actor

unit: $(READY) ## Unit tests only
	$(PARALLEL) tests/unit

http: $(READY) ## Bad requests and made-up ones; RHEOS_HTTP_EXAMPLES=7000 is the long form
	$(BIN)/pytest tests/http

load: $(READY) ## 5,000 slow connections, ten times the capacity, a user with a million events
	RHEOS_SLOW_CLIENTS=5000 RHEOS_ATTACK_S=60 $(PYTEST) tests/http/test_slow_and_large.py
	RHEOS_OVERLOAD_S=60 $(PYTEST) tests/http/test_overload.py
	RHEOS_ONE_USERS_EVENTS=1000000 $(PYTEST) tests/actor/test_bounds.py --timeout 600

actor: $(READY) ## Tests of the actors on a local Ray
	$(PYTEST) tests/actor

durability: $(READY) ## Tests that crash the disk in every way and read it again
	$(PARALLEL) tests/durability

e2e: $(READY) ## Tests of the whole system over HTTP
	$(PYTEST) tests/e2e

chaos: $(READY) ## Tests that kill processes; the long form: make chaos KILLS=100 SEEDS=0,1,2
	$(if $(KILLS),RHEOS_CHAOS_KILLS=$(KILLS) RHEOS_CHAOS_SEEDS=$(SEEDS) RHEOS_CHAOS_OUT=chaos-out) $(PYTEST) tests/chaos tests/soak

soak: $(READY) ## Half an hour under load, a kill every 20 s: memory, handles and disk; make soak [SOAK_S=seconds]
	RHEOS_SOAK_S=$(SOAK_S) RHEOS_CHAOS_OUT=chaos-out $(PYTEST) tests/soak

up: $(READY) ## Start a local system and leave it running
	$(BIN)/rheos up

down: $(READY) ## Stop it
	$(BIN)/rheos down

bench: $(READY) ## Quality of every ranking on a stream: make bench DATA=folder
	$(BIN)/python -m benchmarks.quality $(if $(DATA),--data '$(DATA)')

clean: ## Remove the virtual environment and what tools left
	rm -rf $(VENV) *.egg-info build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
