# Everything sets itself up: a machine with Python, pip and make is enough. Nothing is done twice.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test stress check format docs clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv (once; a minute or two)"
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $(STAMP)
	@echo "installed; to have the command prefloop in this shell: . .venv/bin/activate"

setup: $(STAMP)  ## create .venv and install prefloop with its development tools

demo: $(STAMP)  ## the whole loop on the embedded world: prefloop quickstart
	$(BIN)/prefloop quickstart

test: $(STAMP)  ## all tests; warnings are errors
	$(BIN)/python -m pytest

stress: $(STAMP)  ## 50 clients label while the server is killed 50 times: SQLite, PostgreSQL
	$(BIN)/python -m stress.label_server

check: $(STAMP)  ## format, lint, types, floors, names
	$(BIN)/ruff format --check src tests stress docs notebooks examples
	$(BIN)/ruff check src tests stress docs notebooks examples
	$(BIN)/pyright
	$(BIN)/lint-imports

format: $(STAMP)  ## rewrite the code in the house's format
	$(BIN)/ruff format src tests stress docs notebooks examples
	$(BIN)/ruff check --fix src tests stress docs notebooks examples

docs: $(STAMP)  ## the documentation as a site in site/, which opens offline
	$(BIN)/mkdocs build --quiet

clean:  ## remove the virtual environment, caches, the site and runs
	rm -rf .venv .pytest_cache .ruff_cache .import_linter_cache site runs
