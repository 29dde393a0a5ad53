# Leadsync: `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export PYTHONPATH := include

.PHONY: help up down status clean lint test lock check

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(STAMP): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Leadsync needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "installing into $(VENV) (about a minute)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

up: $(STAMP) ## starts everything on this machine and prints address and login
	@$(BIN)/python -m demo.stack up

down: $(STAMP) ## stops everything; the data stays
	@$(BIN)/python -m demo.stack down

status: $(STAMP) ## addresses as NAME=value, and the state of each process
	@$(BIN)/python -m demo.stack status

clean: $(STAMP) ## stops everything and removes its data
	@$(BIN)/python -m demo.stack clean

lint: $(STAMP) ## ruff, mypy and the import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: $(STAMP) ## every test; needs nothing running and leaves nothing running
	$(BIN)/pytest

check: $(STAMP) ## reads the pipeline files and says what is wrong
	$(BIN)/python -m leadsync check

lock: ## compiles requirements.in into requirements.txt, fully pinned
	uv pip compile --quiet --universal --python-version 3.11 requirements.in -o requirements.txt
