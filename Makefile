# Ziggurat's developer commands. Every target works as the first command after a clone: it makes .venv when needed.
# Another Python: make tests PYTHON=python3.13 VENV=build/venv-3.13.
# Needs: python3 (3.11 or newer) with its venv module, and make. Everything else comes from the registry, as locked.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Large wheels over a slow line take longer than uv waits by default.
UV := UV_HTTP_TIMEOUT=180 UV_HTTP_RETRIES=6 UV_PROJECT_ENVIRONMENT=$(VENV) $(BIN)/uv
UV_VERSION := 0.13.9
PIP_QUIETLY := --quiet --disable-pip-version-check --retries 8 --timeout 60
DEMO ?= $(BIN)/python -m examples.document_analysis.demo
PYTEST := $(BIN)/python -m pytest
CHECKED := $(wildcard src tests examples benchmarks scripts)
JUNIT := build/junit
# Processes for the tests that can share a machine. Chaos tests kill things and always run alone.
JOBS ?= 2

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# One line between stages, so that a long log can be read by its headings.
stage = @printf '\n==> %s\n' '$(1)'

.PHONY: help install demo test test-long lint types architecture tests chaos docs docs-test reference bench format lock clean

help: ## List these targets.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(STAMP) ## Make .venv with everything developers need (quick when nothing changed).

# The bare environment: Python and uv, which then installs the rest as locked.
$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Ziggurat needs Python 3.11 or newer, and '$(PYTHON)' is not: name one with 'make PYTHON=/path/to/python3.11'." >&2; exit 2; }
	@# Debian ships venv without ensurepip; the pip of the machine can fill in.
	@test -x $(BIN)/pip || if $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then $(PYTHON) -m venv $(VENV); \
	  elif $(PYTHON) -c 'import pip, venv' 2>/dev/null; then \
	    $(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install $(PIP_QUIETLY) pip; \
	  else \
	    echo "'$(PYTHON)' cannot make virtual environments: install its venv module, on Debian with 'apt install python3-venv'." >&2; \
	    exit 2; \
	  fi
	@$(BIN)/python -m pip install $(PIP_QUIETLY) uv==$(UV_VERSION)

# --inexact keeps what a developer added by hand; `make clean` starts anew.
$(STAMP): pyproject.toml uv.lock | $(BIN)/uv
	@$(UV) sync --quiet --frozen --all-extras --inexact --python $(BIN)/python
	@touch $@
	@echo "Installed into $(VENV)."

demo: install ## Run the document example through all four layers on the local model.
	@$(DEMO)

test: install ## Everything a change must pass: lint, types, architecture, tests, chaos, docs.
	@rm -rf $(JUNIT)
	@$(MAKE) lint types architecture tests chaos docs docs-test
	$(call stage,all stages passed)

test-long: install ## The slow tests and long fuzzing as well (an hour or more).
	$(call stage,slow tests)
	@HYPOTHESIS_PROFILE=long $(PYTEST) tests -m "slow and not network" --timeout=3600 --junit-xml=$(JUNIT)/slow.xml

lint: install ## Style: ruff check and ruff format --check.
	$(call stage,lint)
	@$(BIN)/ruff check --quiet --output-format concise .
	@$(BIN)/ruff format --quiet --check .

types: install ## mypy, strict.
	$(call stage,types)
	@$(BIN)/mypy $(CHECKED)

architecture: install ## Imports look down, no cycles, no long files, no dead files.
	$(call stage,architecture)
	@$(PYTEST) -q tests/test_architecture.py --junit-xml=$(JUNIT)/architecture.xml

tests: install ## Unit, conformance, integration and end-to-end tests.
	$(call stage,tests)
	@$(PYTEST) -q tests -n $(JOBS) --dist loadfile -m "not chaos and not slow and not network" \
	  --ignore=tests/test_architecture.py --ignore=tests/test_docs.py -n $(JOBS) --junit-xml=$(JUNIT)/tests.xml

chaos: install ## Tests that kill processes and inject faults, one at a time.
	$(call stage,chaos)
	@$(PYTEST) -q tests -m "chaos and not slow and not network" --junit-xml=$(JUNIT)/chaos.xml

docs: install ## Build the documentation site into build/site.
	$(call stage,docs)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

docs-test: install ## Run every snippet of README.md and docs/.
	$(call stage,docs snippets)
	@$(PYTEST) -q tests/test_docs.py -n $(JOBS) --junit-xml=$(JUNIT)/docs.xml

reference: install ## Write the generated parts of docs/reference from the code.
	@$(BIN)/python -m scripts.reference

bench: install ## Run the benchmarks; they print ratios against peers and are no tests.
	@$(BIN)/python -m benchmarks

format: install ## Mend what ruff can mend.
	@$(BIN)/ruff check --quiet --fix-only .
	@$(BIN)/ruff format --quiet .

lock: $(BIN)/uv ## Refresh uv.lock from pyproject.toml.
	@$(UV) lock --python $(BIN)/python

clean: ## Remove .venv and everything that was built.
	rm -rf $(VENV) build dist .import_linter_cache .hypothesis .ruff_cache
