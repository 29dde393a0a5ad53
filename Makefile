# Leadsync: `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS := .venv-docs
AUDIT := .venv-audit
AUDIT_STAMP := $(AUDIT)/.installed
export PYTHONPATH := include

.PHONY: help up down status clean lint lint-compose test test-airflow test-rest test-compose test-machines chaos bench bench-full bench-page lock check docs audit sbom secrets new-crm screenshots

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(STAMP): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Leadsync needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "installing into $(VENV) (one to two minutes)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

up: $(STAMP) ## starts everything, on ports from LEADSYNC_PORT (8080) on; prints the address and the login
	@$(BIN)/python -m demo.stack up

# Without a virtual environment nothing was ever started here.
NOTHING = test -x $(BIN)/python || { echo "Leadsync is not running"; exit

down: ## stops everything; the data stays for the next make up
	@$(NOTHING) 0; }; $(BIN)/python -m demo.stack down

status: ## addresses, passwords and the state of every process, as NAME=value lines
	@$(NOTHING) 3; }; $(BIN)/python -m demo.stack status

clean: ## stops everything and deletes the data (.local); .venv stays
	@$(NOTHING) 0; }; $(BIN)/python -m demo.stack clean

lint: $(STAMP) lint-compose ## ruff, mypy, the import rules, and docker-compose.yaml where there is docker compose
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# A warning, of a variable that is not set for example, is a fault too.
lint-compose:
	@docker compose version > /dev/null 2>&1 || { echo "docker-compose.yaml is not checked: there is no docker compose here"; exit 0; }; \
	said=$$(docker compose --profile '*' config --quiet 2>&1) && test -z "$$said" || { echo "$$said"; exit 1; }

test: $(STAMP) ## every test; needs nothing running and leaves nothing running
	@$(MAKE) --no-print-directory --keep-going --jobs=2 test-airflow test-rest

# Side by side, for a test waits most of the time.
test-airflow: $(STAMP)
	$(BIN)/pytest tests/e2e

# A file's tests stay together: they share servers. Those of tests/stack start everything anew again and again.
test-rest: $(STAMP)
	$(BIN)/pytest --numprocesses 2 --dist loadfile $(addprefix --ignore=tests/,e2e stack compose machines)
	$(BIN)/pytest tests/stack

test-compose: $(STAMP) ## docker-compose.yaml brought up for real; LEADSYNC_COMPOSE is the compose command, else `docker compose`
	$(BIN)/pytest tests/compose

# In a namespace of its own, with which links and rules end. It makes more of them: workers' machines.
test-machines: export PATH := $(PATH):/usr/sbin:/sbin
test-machines: $(STAMP) ## Celery workers on machines of their own, one of which is lost (needs root, iproute2 and iptables)
	@for need in unshare ip iptables; do command -v $$need > /dev/null || { echo "no $$need here: apt-get install iproute2 iptables util-linux"; exit 1; }; done
	@test "$$(id -u)" = 0 || { echo "links between machines are made by root alone: run it as root"; exit 1; }
	unshare --net sh -c 'ip link set lo up && exec $(BIN)/pytest tests/machines'

chaos: $(STAMP) ## random failures on real servers: SECONDS=600 (from FIRST=1 on), or one SEED; STACK=1: under Airflow
	$(BIN)/python -m tests.chaos $(if $(STACK),--stack) $(if $(SEED),--seed $(SEED),--seconds $(or $(SECONDS),600) --first $(or $(FIRST),1))

TLS := $(BIN)/python -m bench.speed --tls --only Leadsync --only "Leadsync, Salesforce" --only "script, batches of 100"

bench: $(STAMP) ## every benchmark, short (about half an hour; needs a C compiler and OpenSSL's headers)
	$(BIN)/python -m bench.adapters
	$(BIN)/python -m bench.speed
	$(BIN)/python -m bench.speed --latency 50
	$(TLS) --rows 100000 --rounds 1
	$(BIN)/python -m bench.freshness
	$(BIN)/python -m bench.steps --rows 100000
	$(BIN)/python -m bench.quota --seconds 60
	$(BIN)/python -m bench.destinations --rows 40000 --rounds 1
	$(BIN)/python -m bench.shards --rows 100000 --rounds 1
	$(BIN)/python -m bench.ledger --rows 2000000 --rounds 3
	$(BIN)/python -m bench.idle --runs 10

bench-full: $(STAMP) ## the same with 1,000,000 leads, a ledger of 100,000,000 and the memory of every task (hours; 40 GB of disk)
	$(BIN)/python -m bench.speed --rows 1000000
	$(BIN)/python -m bench.speed --rows 1000000 --latency 50
	$(TLS) --rows 1000000
	$(TLS) --rows 1000000 --latency 50
	$(BIN)/python -m bench.freshness --minutes 30
	$(BIN)/python -m bench.memory
	$(BIN)/python -m bench.memory --rows 10000000
	$(BIN)/python -m bench.steps
	$(BIN)/python -m bench.quota --seconds 300
	$(BIN)/python -m bench.destinations
	$(BIN)/python -m bench.shards
	$(BIN)/python -m bench.ledger
	$(BIN)/python -m bench.idle

bench-page: $(STAMP) ## how fast the page answers over 10,000,000 ledger rows and 1,000,000 dead letters (about 15 minutes)
	$(BIN)/python -m bench.page

check: $(STAMP) ## reads the pipeline files and says what is wrong
	$(BIN)/python -m leadsync check

docs: $(STAMP) $(DOCS)/.installed ## writes the pages that come from the code, and builds the site of docs into site/
	@$(BIN)/python -m leadsync docs
	@NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --clean

# Apart from what Leadsync runs on: the two share nothing.
$(DOCS)/.installed: requirements-docs.txt | $(STAMP)
	@$(BIN)/python -m venv $(DOCS)
	@$(DOCS)/bin/pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	@touch $@

new-crm: $(STAMP) ## writes adapter, simulator and test of a new CRM, to be changed: NAME=acme
	@$(BIN)/python -m leadsync new-crm '$(NAME)'

screenshots: $(STAMP) ## makes the pictures of the page in docs/page anew (needs chromium)
	LEADSYNC_SCREENSHOTS=docs/page $(BIN)/pytest tests/e2e/test_page.py -k "every_view or language"

$(AUDIT_STAMP): requirements-audit.txt
	@$(PYTHON) -m venv $(AUDIT)
	@$(AUDIT)/bin/pip install --quiet --disable-pip-version-check -r requirements-audit.txt
	@touch $@

# Strict: a package that the index does not tell about counts as a failure, or else nothing audited would pass for all well.
audit: $(AUDIT_STAMP) ## known vulnerabilities of what requirements.txt pins; asks the package index
	@$(AUDIT)/bin/pip-audit --strict --disable-pip --no-deps --progress-spinner off -r requirements.txt || \
	{ echo "Not passed. \"Dependency not found on PyPI\" or a connection error mean that no index with such data can be reached: nothing was audited."; exit 1; }

sbom: $(AUDIT_STAMP) ## writes sbom.json, the bill of materials of requirements.txt (CycloneDX)
	$(AUDIT)/bin/cyclonedx-py requirements requirements.txt --output-reproducible -o sbom.json

# What is in the baseline are throw-away values of tests and demo. To add one: `detect-secrets scan --baseline .secrets.baseline`.
secrets: $(AUDIT_STAMP) ## looks for secrets in FILES (default: all that git knows); needs no network
	@git ls-files -z $(FILES) | xargs -0 $(AUDIT)/bin/detect-secrets-hook --no-verify --baseline .secrets.baseline

lock: ## compiles requirements.in and requirements-docs.in into their .txt, fully pinned
	uv pip compile --quiet --universal --python-version 3.11 requirements.in -o requirements.txt
	uv pip compile --quiet --universal --python-version 3.11 requirements-docs.in -o requirements-docs.txt
