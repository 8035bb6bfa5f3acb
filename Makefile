# Everything runs in .venv, which `make` builds itself: only Python 3.11+ and make are needed.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: help install browser screenshots demo docs test examples soak chaos lint types layers simulate mutants thorough platforms package bench clean
.DEFAULT_GOAL := help

help: ## show this help
	@grep -hE '^[a-z-]+:.*?## ' $(MAKEFILE_LIST) | awk 'BEGIN {FS = ":.*?## "} {printf "  make %-10s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else "Python 3.11, 3.12 or 3.13 is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable . --group dev
	touch $(STAMP)

install: $(STAMP) ## create .venv and install the package with its development tools

demo: $(STAMP) ## 1,000 requests in four worker processes on SQLite, one budget of connections
	$(BIN)/python examples/demo.py

docs: $(STAMP) ## the documentation as a site, into site/: no link in it is broken, and what the guides say is so
	$(BIN)/python docs/generate.py build/site-source
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file build/site-source/mkdocs.yml
	$(BIN)/python -m pytest -m long tests/docs

browser: $(STAMP) ## the Chromium that tests of the web page need, where there is none (with apt-get, else Playwright's)
	@command -v chromium chromium-browser google-chrome || apt-get install -y --no-install-recommends chromium \
	  || $(BIN)/playwright install --with-deps chromium-headless-shell

screenshots: $(STAMP) browser ## the pictures of docs/dashboard.md, from a run of several minutes (MINUTES=15)
	$(BIN)/python -m tests.observer.screenshots $(or $(MINUTES),15)

# Tests start thousands of processes. Where PYTHONDONTWRITEBYTECODE is set, each would compile all of the package anew.
test: browser lint types layers ## lint, types, layering and the tests, two files at a time (12 min)
	$(BIN)/python -m compileall -q pysqlx_engine
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

thorough: browser ## what `make test` leaves out for its time: long waits, more managers, more databases (2 min)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m thorough

examples: $(STAMP) ## the 1,000-request examples on every database, one and two workers: seconds, bound, ratio (4 min)
	$(BIN)/python -m pytest -m long tests/examples

lint: $(STAMP) ## ruff: rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## mypy --strict
	$(BIN)/mypy

layers: $(STAMP) ## imports point one way
	$(BIN)/lint-imports

soak: $(STAMP) ## the pool in trouble for minutes, and every outcome at every await (10 min)
	$(BIN)/python -m pytest -m long tests/pool

chaos: $(STAMP) ## processes killed at random: pools for a minute on each server, 20,000 jobs on each database (12 min)
	$(BIN)/python -m pytest -s -m long tests/workers/test_chaos.py tests/jobs/test_kills.py

simulate: $(STAMP) ## a simulated fleet until you stop it, or something breaks; SIMULATE="--minutes 10", "--seed 4711"
	$(BIN)/python -m tests.simulation $(SIMULATE)

mutants: $(STAMP) ## break each rule that keeps the budget once: the simulation has to notice (3 min)
	$(BIN)/python -m tests.simulation.mutants

platforms: $(STAMP) ## runs without what not every system has, one after the other and all at once (1 min)
	$(BIN)/python -m pytest -m "long or not long" tests/workers/test_platform.py

package: $(STAMP) ## wheel and source distribution, installed in clean environments with and without extras (2 min)
	$(BIN)/python -m pytest -m long tests/test_packaging.py

bench: $(STAMP) ## ratios to other pools and to 0.3.2, speed and scale of a fleet; BENCH="--quick --only query" (30 min)
	$(BIN)/python -m benchmarks $(BENCH)

clean: ## remove .venv and everything built
	rm -rf $(VENV) .venv-bench dist build site .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
