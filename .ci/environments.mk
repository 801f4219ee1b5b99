# The environments that the targets of the Makefile run in, each made once and again when its lock has changed.
STUBS_PLUGIN := clients/plugins/python_stubs.py
export PIP_DISABLE_PIP_VERSION_CHECK := 1

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
.venv-litellm/installed: EXPORTED := --script tests/bench/litellm_proxy.py
.venv-audit/installed: EXPORTED := --only-group audit
.venv-fuzz/installed: EXPORTED := --no-dev --group fuzz --no-emit-workspace
.venv-fuzz/installed: OURS := --editable clients/python --editable .
.venv-%/installed: .venv/installed $(STUBS_PLUGIN).lock k8s/policies.py.lock tests/bench/litellm_proxy.py.lock
	$(BIN)/python -m venv $(@D)
	$(BIN)/uv export --quiet --locked $(EXPORTED) --output-file $(@D)/requirements.txt
	$(@D)/bin/pip install --quiet --no-deps --require-hashes --requirement $(@D)/requirements.txt
	$(if $(OURS),$(@D)/bin/pip install --quiet --no-deps $(OURS))
	touch $@
