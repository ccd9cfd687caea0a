# The commands of the project. Each one does all of its own set-up, once; a second call starts at once.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help run test check client bench lab weather clean
.DELETE_ON_ERROR:

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
NPM_CI := ci --no-audit --no-fund --loglevel=error
ONLINE := is this machine online? then run make again
ARGS ?=

help:
	@echo 'make run      the gateway with its demo page        ARGS="--port 9000", see ARGS=--help'
	@echo 'make test     all tests, with real browsers and proxies   ARGS="tests/network -x"'
	@echo 'make check    format, types, imports, docs, generated files'
	@echo 'make client   builds static/client.js from client/src'
	@echo 'make bench    measures'
	@echo 'make lab      the gateway behind every hostile network that we have, to try by hand'
	@echo 'make weather  drops, losses, limits and distance for two minutes each: what arrives'
	@echo 'make clean    removes what make has made'

run: $(VENV)/.runtime
	@exec $(PY) -m gateway $(ARGS)

# The client's own tests run with the whole, not with a selection.
test: $(VENV)/.dev node
	@$(if $(ARGS),,if [ -f client/package.json ] && command -v node >/dev/null; then \
		scripts/test-client; fi)
	@exec $(PY) -m pytest $(ARGS)

check: $(VENV)/.dev node
	@exec $(PY) scripts/check.py $(ARGS)

client: node
	@exec npm --prefix client --silent run build

bench: $(VENV)/.dev
	@if [ -f bench/__main__.py ]; then exec $(PY) -m bench $(ARGS); \
	else echo 'There is nothing to measure yet: bench/ comes with a later version.'; fi

lab: $(VENV)/.dev parts
	@exec $(PY) -m tests.network.lab $(ARGS)

weather: $(VENV)/.dev node
	@exec $(PY) -m tests.network.survival $(ARGS)

clean:
	rm -rf $(VENV) client/node_modules tests/node_modules build dist .mypy_cache .ruff_cache \
		.pytest_cache .hypothesis .import_linter_cache

# --- what the commands need --------------------------------------------------------------------

$(VENV)/bin/python:
	@scripts/step 'making $(VENV)' 'install Python 3.11 or later with its venv module' \
		scripts/make-venv $(VENV)

$(VENV)/.runtime: requirements.txt | $(VENV)/bin/python
	@scripts/step 'installing requirements.txt' '$(ONLINE)' $(PIP) install -r requirements.txt
	@touch $@

$(VENV)/.dev: requirements.txt requirements-dev.txt pyproject.toml | $(VENV)/bin/python
	@scripts/step 'installing requirements-dev.txt' '$(ONLINE)' \
		$(PIP) install -r requirements.txt -r requirements-dev.txt
	@scripts/step 'linking the package into $(VENV)' 'see above' \
		$(PIP) install --no-build-isolation --no-deps -e .
	@touch $(VENV)/.runtime $@

.PHONY: parts node
parts:
	@scripts/parts

# npm writes this file last, so it is the stamp of a complete installation.
NODE_STAMPS := $(patsubst %/package.json,%/node_modules/.package-lock.json,\
	$(wildcard client/package.json tests/package.json))
node: parts
	@if command -v npm >/dev/null; then $(MAKE) -s --no-print-directory $(NODE_STAMPS); fi

%/node_modules/.package-lock.json: %/package-lock.json %/package.json
	@scripts/step 'installing $*/node_modules' '$(ONLINE)' npm --prefix $* $(NPM_CI)
	@touch $@
