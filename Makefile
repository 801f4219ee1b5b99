# Needs Python 3.11 or newer and make. Everything else is installed into .venv, at the versions of uv.lock.
.PHONY: help run demo test test-server test-clients conformance lint audit sbom generate generate-check breaking \
	k8s-check chaos fuzz bench charts image image-check clean
.DEFAULT_GOAL := help

PYTHON ?= python3
UV_VERSION := 0.13.9
BIN := .venv/bin

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "%-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: .venv/installed ## start the server with all it needs and keep it running
	$(BIN)/famulus-server demo --keep-serving
demo: .venv/installed ## start the server, show one conversation, stop
	$(BIN)/famulus-server demo

test: test-server $(if $(PYTEST_ARGS),,test-clients) ## run the tests; PYTEST_ARGS="-k resume" picks some of the server's

test-server: .venv/installed
	$(MAKE) --no-print-directory -C k8s tools
	$(BIN)/pytest $(PYTEST_ARGS)
test-clients:
	$(MAKE) -C clients build test

conformance: .venv/installed ## compare what all clients do with what they should do; LANGUAGES=go,java picks some
	$(MAKE) -C clients build
	PYTHON=$(abspath $(BIN))/python PYTHONPATH=tests $(BIN)/python -m conformance $(if $(LANGUAGES),--languages $(LANGUAGES))

lint: .venv/installed ## check style, types, layers and protos
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	$(BIN)/hadolint Dockerfile

audit: .venv-audit/installed ## look for known vulnerabilities; AUDIT=strict fails where that cannot be looked up
	.venv-audit/bin/python .ci/audit.py .venv/requirements.txt $(AUDIT)

sbom: .venv-audit/installed ## write what the server is made of to dist/famulus-server.cdx.json
	$(BIN)/uv export --quiet --locked --no-dev --all-extras --no-emit-workspace --output-file .venv/shipped.txt
	.venv-audit/bin/python .ci/sbom.py $(BIN)/python .venv/shipped.txt dist/famulus-server.cdx.json

generate: ## write the stubs in clients/ from protos/; needs Go, Node.js and Rust
generate-check: ## fail when the stubs in clients/ differ from protos/
breaking: ## fail when protos/ break callers of the last release
generate generate-check breaking: .venv/installed .venv-stubs/installed
	$(MAKE) -C clients $@

k8s-check: .venv/installed .venv-k8s/installed ## check the manifests in k8s/; needs Go
	$(MAKE) --no-print-directory -C k8s check

chaos: .venv/installed ## kill, freeze and restart everything under load; RUNS=100 makes it shorter
	PYTHONPATH=tests $(BIN)/python -m chaos --runs $(or $(RUNS),1000)

fuzz: .venv-fuzz/installed ## look for input that breaks a parser; FUZZ_SECONDS=60 makes it shorter (Linux, x86_64)
	PYTHONPATH=tests .venv-fuzz/bin/python -m fuzz $(or $(FUZZ_SECONDS),300)

bench: .venv/installed ## measure how fast everything is; BENCH=quick takes three minutes, ONLY=W1,W5 picks some
	-$(MAKE) --no-print-directory .venv-litellm/installed
	PYTHONPATH=tests $(BIN)/python -m bench --plan $(or $(BENCH),full) --litellm .venv-litellm/bin/python \
		$(if $(ONLY),--only $(ONLY)) $(if $(ONLY)$(filter-out full,$(BENCH)),,--write)

charts: .venv/installed ## draw docs/charts from the dashboard's queries over five minutes of load; needs Prometheus
	PYTHONPATH=tests $(BIN)/python -m monitoring docs/charts

image: ## build the container image; IMAGE, BASE_IMAGE, EXTRAS=embedded, WEIGHTS=yes: docs/image.md
	.ci/image

image-check: .venv/installed ## build the image on a base made here, and try it; needs root, buildah and mmdebstrap
	.ci/image-check

clean: ## remove what the other targets installed and cached
	rm -rf .venv .venv-* k8s/.tools dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

include .ci/environments.mk
