# One target for each habit. All of them make their own virtual environment first; nothing needs root.
#
#   make run      the demo: a server, a real series streamed to it, what it learned
#   make test     every test                        (ARGS="-k name" passes options on)
#   make test-other-processor   tests of learning and of equal bits, with code for an older processor
#   make test-interop   tests with other people's programs (PyTorch), in an environment of their own
#   make coverage the core's tests with its kernels as plain Python: every line is run
#   make check    lint, format, types, imports, protos
#   make bench    speed, against what it is compared to
#   make protos   generates service/bptt/v1/ from protos/ again
#   make docs     writes docs/metrics.md again
#
# PYTHON=/path/to/python3 chooses the interpreter, VENV=folder where the environment stands.

VENV ?= .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.runtime-installed
DEV := $(VENV)/.dev-installed
PYTHON_CANDIDATES := $(if $(PYTHON),$(PYTHON),python3 python3.13 python3.12 python3.11 python3.14 python)

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# The tools that protoc and the tests start are the environment's own.
export PATH := $(abspath $(BIN)):$(PATH)

# Modules are compiled when they are first imported, which is sooner than all of them at once.
PIP_INSTALL := $(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt
PROTO_FILES := $(wildcard protos/bptt/v1/*.proto)
protoc = $(BIN)/python -m grpc_tools.protoc -I protos --python_out=$(1) --grpc_python_out=$(1) --mypy_out=quiet:$(1) --mypy_grpc_out=quiet:$(1) $(PROTO_FILES)

.PHONY: help run test test-other-processor test-interop coverage check bench protos docs clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^#   //p' Makefile

run: $(RUNTIME)
	@$(BIN)/bptt demo $(ARGS)

test: $(DEV)
	@$(BIN)/python -m pytest $(ARGS)

# Numba and OpenBLAS choose code for a processor without AVX and FMA (on ARM: for any ARMv8).
# NUMBA_CPU_FEATURES must be empty: if it is unset, Numba adds the features of this machine's
# processor. The kernels' cache is separate.
X86 := $(filter x86_64 amd64,$(shell uname -m))
OTHER_PROCESSOR := NUMBA_CPU_NAME=$(if $(X86),nehalem,generic) NUMBA_CPU_FEATURES= \
	OPENBLAS_CORETYPE=$(if $(X86),Nehalem,ARMV8) NUMBA_CACHE_DIR=$(abspath build/other-processor)

test-other-processor: $(DEV)
	@$(OTHER_PROCESSOR) $(BIN)/python -m pytest -m "learning or same_bits" $(ARGS)

# PyTorch and others are large, and no other test needs them.
test-interop:
	@$(MAKE) --no-print-directory VENV=build/interop build/interop/.interop-installed
	@build/interop/bin/python -m pytest tests/interop $(ARGS)

$(VENV)/.interop-installed: $(DEV)
	@$(PIP_INSTALL) --editable '.[server,security,dev,interop]'
	@touch $@

# Lines are counted where Python runs them, so nothing is compiled; tests look at fewer examples.
coverage: $(DEV)
	@mkdir -p build
	@NUMBA_DISABLE_JIT=1 $(BIN)/python -m coverage run -m pytest tests/core tests/property $(ARGS)
	@$(BIN)/python -m coverage report

bench: $(RUNTIME)
	@$(BIN)/python -m benchmarks $(ARGS)

check: $(DEV)
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check . || { echo "check: these are not formatted: run $(BIN)/ruff format" >&2; $(BIN)/ruff format --check . >&2; exit 1; }
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/buf lint
	@$(BIN)/buf format --diff --exit-code
	@rm -rf build/protos && mkdir -p build/protos
	@$(call protoc,build/protos)
	@diff -r -x __init__.py -x py.typed -x __pycache__ build/protos/bptt/v1 service/bptt/v1 \
		|| { echo "check: service/bptt/v1/ is not what its .proto files give: run make protos" >&2; exit 1; }
	@echo "check: lint, format, types, imports and protos are as they should be"

protos: $(DEV)
	@$(call protoc,service)

docs: $(RUNTIME)
	@mkdir -p build
	@$(BIN)/python -m bptt.observability.reference > build/metrics.md && mv build/metrics.md docs/metrics.md

clean:
	@rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# What the server, the client and the benchmarks need. `make test` installs it too.
$(RUNTIME): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV) ..."
	@$(PIP_INSTALL) --editable '.[server]'
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV), with the tools for development ..."
	@$(PIP_INSTALL) --editable '.[server,security,plots,tables,dev]'
	@touch $(RUNTIME) $@

$(BIN)/python:
	@found=; for python in $(PYTHON_CANDIDATES); do \
		if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
		echo "Python 3.11 or newer is needed, and none was found as any of: $(PYTHON_CANDIDATES)" >&2; \
		for python in $(PYTHON_CANDIDATES); do "$$python" --version 2>/dev/null | sed "s|^|  $$python is |" >&2; done; \
		echo "Name one with: make PYTHON=/path/to/python3 $(MAKECMDGOALS)" >&2; exit 1; \
	fi; \
	if ! "$$found" -m venv $(VENV); then \
		rm -rf $(VENV); echo "$$found can make no virtual environment (on Debian and Ubuntu its package is python3-venv)" >&2; exit 1; \
	fi
