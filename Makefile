# Needs Python 3.11 or newer and make. Everything else is installed into .venv, at the versions of uv.lock.
.PHONY: help run demo test test-server test-clients conformance lint audit sbom generate generate-check breaking \
	k8s-check chaos fuzz bench charts image image-check clean
.DEFAULT_GOAL := help

PYTHON ?= python3
UV_VERSION := 0.13.9
RUNS ?= 1000
FUZZ_SECONDS ?= 300
BIN := .venv/bin
STUBS_PLUGIN := clients/plugins/python_stubs.py
export PIP_DISABLE_PIP_VERSION_CHECK := 1

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

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
	PYTHONPATH=tests $(BIN)/python -m chaos --runs $(RUNS)

fuzz: .venv-fuzz/installed ## look for input that breaks a parser; FUZZ_SECONDS=60 makes it shorter (Linux, x86_64)
	PYTHONPATH=tests .venv-fuzz/bin/python -m fuzz $(FUZZ_SECONDS)

bench: .venv/installed ## measure how fast runs stream and begin, and what limits cost, on this machine
	for part in stream threads limits; do PYTHONPATH=tests $(BIN)/python -m bench.$$part || exit; done

charts: .venv/installed ## draw docs/charts from the dashboard's queries over five minutes of load; needs Prometheus
	PYTHONPATH=tests $(BIN)/python -m monitoring docs/charts

image: ## build the container image; IMAGE, BASE_IMAGE, EXTRAS=embedded, WEIGHTS=yes: docs/image.md
	.ci/image

image-check: .venv/installed ## build the image on a base made here, and try it; needs root, buildah and mmdebstrap
	.ci/image-check

clean: ## remove what the other targets installed and cached
	rm -rf .venv .venv-* k8s/.tools dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# uv only reads the lock; pip installs, because it obeys the machine's settings (index, proxy, certificates).
.venv/installed: pyproject.toml clients/python/pyproject.toml uv.lock
	@$(PYTHON) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' || { \
		echo '$(PYTHON) is not a Python 3.11 or newer with venv and ensurepip (Debian: python3-venv);' \
		'name another one with PYTHON=...' >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet uv==$(UV_VERSION)
	$(BIN)/uv export --quiet --locked --all-extras --no-emit-workspace --output-file .venv/requirements.txt
	$(BIN)/pip install --quiet --no-deps --require-hashes --requirement .venv/requirements.txt
	$(BIN)/pip install --quiet --no-deps --editable clients/python --editable .
	touch $@

# The stub generator needs an older protobuf than the server, and what looks at the manifests older versions of much; what
# looks at the packages is none of them, and fuzzing has no wheels for other machines.
.venv-stubs/installed: EXPORTED := --script $(STUBS_PLUGIN)
.venv-k8s/installed: EXPORTED := --script k8s/policies.py
.venv-audit/installed: EXPORTED := --only-group audit
.venv-fuzz/installed: EXPORTED := --no-dev --group fuzz --no-emit-workspace
.venv-fuzz/installed: OURS := --editable clients/python --editable .
.venv-%/installed: .venv/installed $(STUBS_PLUGIN).lock k8s/policies.py.lock
	$(BIN)/python -m venv $(@D)
	$(BIN)/uv export --quiet --locked $(EXPORTED) --output-file $(@D)/requirements.txt
	$(@D)/bin/pip install --quiet --no-deps --require-hashes --requirement $(@D)/requirements.txt
	$(if $(OURS),$(@D)/bin/pip install --quiet --no-deps $(OURS))
	touch $@
