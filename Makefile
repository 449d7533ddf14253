# Every target creates the environment it needs: .venv, from setup.cfg, pyproject.toml and constraints.txt.
# `make VENV=/path/to/venv <target>` uses an existing environment instead and installs nothing.
# Without make, once:
#     python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e ".[demo,dev]" && . .venv/bin/activate
# and then the plain command beside each target.

SHELL := /bin/bash
BASE_PYTHON ?= python3

ifdef VENV
PYTHON := $(abspath $(VENV))/bin/python
ENVIRONMENT :=
else
PYTHON := .venv/bin/python
ENVIRONMENT := .venv/installed
endif

# An environment given by VENV= may not have this checkout installed; examples and tests use it in any case
export PYTHONPATH := $(CURDIR)/src$(if $(PYTHONPATH),:$(PYTHONPATH))

.PHONY: demo app reproduce test test-all test-app docs notebooks faults fuzz test-versions lint bench bench-full help
.DEFAULT_GOAL := help

help:
	@echo "make demo | app | reproduce | test | test-all | test-app | docs | notebooks | faults | fuzz | test-versions | lint | bench | bench-full   [VENV=existing environment]"

# The stamp is written last: an interrupted install is repeated
.venv/installed: setup.cfg pyproject.toml constraints.txt
	$(BASE_PYTHON) -m venv .venv
	.venv/bin/python -m pip install -c constraints.txt -e ".[demo,dev]"
	touch $@

# The complete pipeline at small scale, about 3 minutes on 2 cores:         python examples/demo.py
demo: $(ENVIRONMENT)
	$(PYTHON) examples/demo.py

.venv/installed-app: .venv/installed
	.venv/bin/python -m pip install -c constraints.txt -e ".[app]"
	touch $@

# The app in a browser, on the models of the demo, which runs first if it has not:     python examples/app/app.py
app: $(ENVIRONMENT:installed=installed-app)
	test -e runs/demo/report.html || $(PYTHON) examples/demo.py
	$(PYTHON) examples/app/app.py --model runs/demo/world_model/final

# The results of README and of the model card, hours:                 python examples/studies/reproduce.py
reproduce: $(ENVIRONMENT)
	$(PYTHON) examples/studies/reproduce.py

# The fast tests, two files at a time:                                python -m pytest -q -m "not slow" -n 2 --dist loadfile
test: $(ENVIRONMENT)
	$(PYTHON) -m pytest -q -m "not slow" -n 2 --dist loadfile

# All tests, two files at a time:                                    python -m pytest -q -n 2 --dist loadfile
test-all: $(ENVIRONMENT)
	$(PYTHON) -m pytest -q -n 2 --dist loadfile

# The app in headless Chromium, on models of random weights and of the demo; screenshots go to runs/browser
test-app: export VJEPA2_TEST_APP := runs/browser
test-app: $(ENVIRONMENT:installed=installed-app)
	$(PYTHON) -m pytest -q --collect-only tests/browser
	test -e runs/demo/report.html || $(PYTHON) examples/demo.py
	$(PYTHON) -m pytest -q tests/browser

.venv/installed-docs: .venv/installed
	.venv/bin/python -m pip install -c constraints.txt -e ".[docs]"
	touch $@

# The documentation site, into site/, after the tests of its links, names and snippets: python -m mkdocs build
docs: $(ENVIRONMENT:installed=installed-docs)
	$(PYTHON) -m pytest -q -m "not slow" tests/docs
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build

# The whole fault suite (kills, power losses, full disks, ...), 20 minutes: python tests/faults/run.py
faults: $(ENVIRONMENT)
	$(PYTHON) tests/faults/run.py

# 10,000 wrong inputs to the public calls, about a minute:            python tests/fuzz/run_fuzz.py
fuzz: $(ENVIRONMENT)
	$(PYTHON) tests/fuzz/run_fuzz.py

# The oldest and newest versions that setup.cfg admits, an hour, 6 GB of disk:  python tests/versions.py
test-versions: $(ENVIRONMENT)
	$(PYTHON) tests/versions.py

# The notebooks, with their outputs stored in them, about 20 minutes: python examples/notebooks/run.py
notebooks: $(ENVIRONMENT)
	$(PYTHON) examples/notebooks/run.py

# Style and common mistakes:                                          ruff check . && ruff format --check .
lint: $(ENVIRONMENT)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

# Speed ratios and memory, under 5 minutes:                           python benchmarks/bench.py
bench: $(ENVIRONMENT)
	$(PYTHON) benchmarks/bench.py

# Every size:                                                         python benchmarks/bench.py --full
bench-full: $(ENVIRONMENT)
	$(PYTHON) benchmarks/bench.py --full
