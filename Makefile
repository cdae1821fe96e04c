# plait's commands. `make help` lists them.
#
# Nothing needs to be prepared: the first target that needs it finds a Python, makes
# $(VENV) and installs what is missing (packages of the system only as root).
#
#   PYTHON=python3.12       use this interpreter (the environment is remade for it)
#   VENV=.venv-3.12         keep another environment beside the first
#   PYTEST_ARGS="-k loop"   arguments for pytest
#   LAB_ARGS, BENCH_ARGS    arguments for `plait lab` and the benchmarks
#   WERROR=1                compiler warnings are errors (continuous integration)

SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -ec
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

PYTHON ?=
VENV ?= .venv
VENV_BENCH ?= .venv-bench
PYTEST_ARGS ?=
SOAK_ARGS ?=
LAB_ARGS ?=
BENCH_ARGS ?=
WERROR ?=

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# pip, meson and ninja of the environment come first in every recipe.
export PATH := $(abspath $(VENV))/bin:$(PATH)
unexport PYTHONHOME PYTHONPATH VIRTUAL_ENV

PY := $(VENV)/bin/python
PIP := $(PY) -m pip --quiet
STAMPS := $(VENV)/.stamps
werror := $(if $(WERROR),-Dwerror=true)

# The environment is made anew when PYTHON= names another interpreter than its own.
ifneq ($(filter-out help clean,$(or $(MAKECMDGOALS),help)),)
venv_state := $(shell tools/venv-state $(VENV) '$(PYTHON)')
ifneq ($(venv_state),ok)
$(shell rm -rf $(VENV))
endif
endif
# "cp313": meson-python names its build directory so.
pytag = $(shell cat $(STAMPS)/tag 2>/dev/null)
pybuild = build/$(pytag)

# ---- what everything stands on ---------------------------------------------

$(STAMPS)/venv:
	@python=$$(tools/find-python '$(PYTHON)') && echo "using $$python" && \
	    $$python -m venv $(VENV) && mkdir -p $(STAMPS)
	@$(PY) -c 'import sys; print("cp%d%d%s" % (*sys.version_info[:2], getattr(sys, "abiflags", "")))' \
	    > $(STAMPS)/tag
	@rm -rf "build/$$(cat $(STAMPS)/tag)" # it was another interpreter's
	@touch $@

# The system's part: a compiler is all it takes.
$(STAMPS)/system: | $(STAMPS)/venv
	@command -v cc >/dev/null || tools/apt-install gcc libc6-dev || \
	    { echo "a C compiler is needed (gcc or clang)" >&2; exit 1; }
	@touch $@

$(STAMPS)/deps: pyproject.toml | $(STAMPS)/venv $(STAMPS)/system
	@echo "installing build and test requirements into $(VENV)"
	@$(PIP) install --upgrade 'pip>=25.1'
	@$(PIP) install --group build --group test
	@touch $@

$(STAMPS)/lint: pyproject.toml | $(STAMPS)/deps
	@echo "installing linters into $(VENV)"
	@$(PIP) install --group lint
	@touch $@

# Installs the package in place, with what the lab needs.
$(STAMPS)/editable: pyproject.toml meson.options $(STAMPS)/deps
	@echo "installing plait in place"
	@$(PIP) install --no-build-isolation -Cbuild-dir='$(pybuild)' \
	    $(if $(WERROR),-Csetup-args=-Dwerror=true) -e '.[lab]'
	@touch $@

# The environment's directory for packages.
site = $(wildcard $(VENV)/lib/python*/site-packages)

.PHONY: build
build: $(STAMPS)/editable ## Compile, and install the package in place into .venv
	@ninja -C '$(pybuild)' --quiet
	@$(PY) tools/link-tree '$(pybuild)' $(site)

# ---- the product -----------------------------------------------------------

.PHONY: lab
lab: build ## Run every model of the Fibonacci server; leaves lab.html and lab.json
	@$(VENV)/bin/plait lab $(LAB_ARGS)

# ---- tests -----------------------------------------------------------------

.PHONY: test
test: test-core test-py ## Run all tests: the core's in C, then pytest

.PHONY: test-py
test-py: build ## Run the Python tests
	@$(if $(PYTEST_ARGS),,PLAIT_BACKEND=uring $(PY) -m pytest --timeout=300 $(both_backends))
	@$(PY) -m pytest --timeout=300 $(PYTEST_ARGS)

# What is worth the time on both backends; `make test-uring` runs all of it.
both_backends = $(addprefix tests/py/test_loop_,transports.py sock_calls.py fds.py)

.PHONY: test-uring
test-uring: build ## Run the Python tests of the loop and of files with io_uring
	@PLAIT_BACKEND=uring $(PY) -m pytest --timeout=300 tests/py/test_files.py \
	    $(wildcard tests/py/test_loop_*.py tests/py/test_generators*.py)

.PHONY: conformance
conformance: build ## Run the interpreter's own asyncio tests on the loop
	@$(PY) -m pytest --timeout=300 tests/conformance $(PYTEST_ARGS)

# $(call core,DIR,OPTIONS): builds and runs the C tests in a directory of their own.
# -O2 with assertions, as meson's debugoptimized and b_ndebug=false give it.
define core
	@if [ ! -f $(1)/build.ninja ]; then \
	    rm -rf $(1) && meson setup $(1) -Dpython=false -Dtests=true \
	        -Dbuildtype=debugoptimized $(werror) $(2) >$(1).log 2>&1 || \
	        { cat $(1).log >&2; rm -rf $(1); exit 1; }; \
	fi
	@ninja -C $(1) --quiet
	@$(4) meson test -C $(1) --no-rebuild --print-errorlogs $(3)
endef

.PHONY: test-ecosystem
test-ecosystem: build ## Run uvicorn, aiohttp, psycopg, redis-py and others on plait's loop
	@tools/apt-install postgresql redis-server || \
	    echo "going on without the servers: their tests are skipped" >&2
	@$(PIP) install -r tests/ecosystem/requirements.txt || \
	    echo "going on without some packages: their tests are skipped" >&2
	@$(PY) -m pytest --timeout=300 tests/ecosystem $(PYTEST_ARGS)

.PHONY: test-core
test-core: $(STAMPS)/deps ## Run the C tests of the core
	@mkdir -p build
	$(call core,build/core,,$(CORE_ARGS))

.PHONY: asan
asan: export ASAN_OPTIONS = abort_on_error=1:detect_leaks=1:allocator_may_return_null=1
asan: export UBSAN_OPTIONS = halt_on_error=1:abort_on_error=1:print_stacktrace=1
asan: $(STAMPS)/deps ## Run the C tests under AddressSanitizer and UBSan
	@mkdir -p build
	$(call core,build/asan,-Db_sanitize=address$(comma)undefined,--timeout-multiplier 4)

# ThreadSanitizer of older compilers cannot cope with as much address randomisation as new
# kernels do; where switching it off is not allowed, it is hoped for.
fixed_addresses = $(shell setarch -R true 2>/dev/null && echo setarch -R)

.PHONY: tsan
tsan: export TSAN_OPTIONS = halt_on_error=1:abort_on_error=1:second_deadlock_stack=1
tsan: $(STAMPS)/deps ## Run the C tests under ThreadSanitizer
	@mkdir -p build
	$(call core,build/tsan,-Db_sanitize=thread,--timeout-multiplier 8,$(fixed_addresses))

# $(call sanitized,DIR,SANITIZERS): builds the extension with a sanitizer, in a tree of its own
# beside the installed one.
define sanitized
	@mkdir -p build
	@if [ ! -f $(1)/build.ninja ]; then \
	    rm -rf $(1) && meson setup $(1) -Dbuildtype=debugoptimized -Db_lundef=false $(werror) \
	        -Db_sanitize=$(2) >$(1).log 2>&1 || { cat $(1).log >&2; rm -rf $(1); exit 1; }; \
	fi
	@ninja -C $(1) --quiet
	@$(PY) tools/link-tree $(1)
endef

.PHONY: asan-py
asan-py: build ## Run the Python tests with the extension under AddressSanitizer and UBSan
	$(call sanitized,build/asan-$(pytag),address$(comma)undefined)
	@tools/sanitized build/asan-$(pytag) $(PY) -m pytest --timeout=600 \
	    -o faulthandler_timeout=590 $(PYTEST_ARGS)

.PHONY: tsan-py
tsan-py: build ## Run what crosses threads, from Python, with the extension under ThreadSanitizer
	$(call sanitized,build/tsan-$(pytag),thread)
	@env LD_PRELOAD="$$($${CC:-gcc} -print-file-name=libtsan.so)" \
	    PYTHONPATH='$(abspath build/tsan-$(pytag))/tree' TSAN_OPTIONS=halt_on_error=1:exitcode=66 \
	    $(fixed_addresses) $(PY) tests/isolated/loop_storm.py

.PHONY: test-clang
test-clang: $(STAMPS)/deps ## Build the core with clang and run its tests
	@command -v clang >/dev/null || tools/apt-install clang
	@mkdir -p build
	@export CC=clang; $(MAKE) test-clang-with-cc

.PHONY: test-clang-with-cc
test-clang-with-cc:
	$(call core,build/clang,,)

# libFuzzer comes with clang. Corpora are kept in build/fuzz between runs.
FUZZ_SECONDS ?= 20
# More options of libFuzzer's: -seed=1 makes a run that can be had again.
FUZZ_ARGS ?=
FUZZERS := board wire
.PHONY: fuzz
fuzz: $(STAMPS)/system ## Fuzz the pool's memory and messages under ASan (FUZZ_SECONDS=20 each)
	@command -v clang >/dev/null || tools/apt-install clang
	@mkdir -p build/fuzz
	@for name in $(FUZZERS); do \
	    mkdir -p build/fuzz/$$name && \
	    clang -std=c11 -D_GNU_SOURCE -DPL_VERSION=\"fuzz\" -g -O1 -Wall -Wextra -fsanitize=fuzzer,address,undefined \
	        -fno-sanitize-recover=undefined -Iinclude -Isrc/core tests/fuzz/fuzz_$$name.c \
	        src/core/pl_{arena,base,bell,ring,spin,stop,sys,wire}.c -o build/fuzz/fuzz_$$name && \
	    echo "fuzz: $$name for $(FUZZ_SECONDS) s" && \
	    build/fuzz/fuzz_$$name -max_total_time=$(FUZZ_SECONDS) -max_len=512 -verbosity=0 $(FUZZ_ARGS) \
	        -print_final_stats=1 -artifact_prefix=build/fuzz/$$name- build/fuzz/$$name \
	        $(wildcard tests/fuzz/corpus/$$name) || exit 1; \
	done

.PHONY: torture soak
torture: build ## Crash workers in every way at every stage, under load (TORTURE=short: once)
	@$(PY) -m pytest --timeout=300 tests/torture $(PYTEST_ARGS)

soak: build ## Two million tasks while workers are killed (SOAK_ARGS="--tasks N")
	@$(PY) tests/torture/soak.py $(SOAK_ARGS)

.PHONY: model-check
model-check: ## Check the models that stand beside the code with spin (MODELS=quick: some)
	@command -v spin >/dev/null || tools/apt-install spin
	@tests/models/check $(MODELS)

.PHONY: stress
stress: build ## Repeat the C tests, and run the Python tests marked stress
	@$(MAKE) test-core CORE_ARGS='--repeat 20 --timeout-multiplier 4'
	@$(PY) -m pytest --timeout=600 -m stress $(PYTEST_ARGS)
	@$(PY) -m pytest --timeout=1800 --hypothesis-profile=stress tests/py/test_auto_fuzz.py

# ---- words and types -------------------------------------------------------

python_dirs := src/plait tests bench
c_files = $(shell git ls-files --cached --others --exclude-standard '*.c' '*.h')

.PHONY: lint
lint: $(STAMPS)/lint ## Check format, style and types, each step whatever the others say
	@$(MAKE) -k lint-c lint-py lint-words types tidy

.PHONY: lint-c lint-py lint-words
lint-c: $(STAMPS)/lint
	@clang-format --dry-run -Werror $(c_files)
	@tools/check-names

lint-py: $(STAMPS)/lint
	@ruff check $(python_dirs)
	@ruff format --check $(python_dirs)

lint-words: $(STAMPS)/lint
	@codespell

.PHONY: tidy
tidy: $(STAMPS)/deps
	@mkdir -p build
	@[ -f build/core/build.ninja ] || meson setup build/core -Dpython=false -Dtests=true \
	    -Dbuildtype=debugoptimized $(werror) >/dev/null
	@if command -v clang-tidy >/dev/null || tools/apt-install clang-tidy; then \
	    clang-tidy --quiet -p build/core $(shell git ls-files 'src/core/*.c') \
	        2>&1 >build/tidy.txt | { grep -vE 'warnings? (generated|treated)' >&2 || true; }; \
	    if [ -s build/tidy.txt ]; then cat build/tidy.txt >&2; exit 1; fi; \
	else \
	    echo "going on without clang-tidy" >&2; \
	fi

.PHONY: types
types: $(STAMPS)/lint $(STAMPS)/editable ## Check types with mypy
	@mypy

.PHONY: fmt
fmt: $(STAMPS)/lint ## Format C and Python sources
	@clang-format -i $(c_files)
	@ruff check --fix-only --quiet $(python_dirs)
	@ruff format --quiet $(python_dirs)

.PHONY: check
check: lint test asan tsan ## Everything that continuous integration runs, but for clang

# ---- figures ---------------------------------------------------------------

# An environment of its own: the peers never come near the package's.
$(VENV_BENCH)/.stamps/peers: bench/peers.txt $(STAMPS)/deps
	@echo "installing the peers into $(VENV_BENCH)"
	@rm -rf $(VENV_BENCH)
	@$(PY) -m venv $(VENV_BENCH) && mkdir -p $(VENV_BENCH)/.stamps
	@grep -vE '^(#|$$)' bench/peers.txt | while read -r peer; do \
	    $(VENV_BENCH)/bin/python -m pip install --quiet "$$peer" \
	        >$(VENV_BENCH)/.stamps/log 2>&1 || echo "not installed: $$peer" >&2; \
	done
	@touch $@

# The peers' environment sees the same build of plait.
.PHONY: bench-build
bench-build: build $(VENV_BENCH)/.stamps/peers
	@$(PY) tools/link-tree '$(pybuild)' $(wildcard $(VENV_BENCH)/lib/python*/site-packages)

bench = PLAIT_BENCH_BIN='$(abspath $(pybuild))/bench' PYTHONPATH='$(abspath bench)' \
    $(VENV_BENCH)/bin/python

.PHONY: bench
bench: bench-build ## Measure loops and pools beside their peers
	@$(bench) -m harness all $(BENCH_ARGS)

.PHONY: bench-loop
bench-loop: bench-build ## Measure the loops: echo servers, primitives, memory
	@$(bench) -m harness loop $(BENCH_ARGS)

.PHONY: bench-crowd
bench-crowd: build ## Measure 64 short connections beside 4 long ones, against the limit in C
	@$(PY) bench/crowd.py $(BENCH_ARGS)

.PHONY: bench-pools
bench-pools: bench-build ## Measure the pools beside their peers; leaves a table in Markdown
	@$(bench) -m pools $(BENCH_ARGS)

# How connections are shared out: one at a time, many, with work to do, held open, and beside a
# worker that stalls.
.PHONY: bench-accept
bench-accept: build ## Measure ways to share out connections between processes: a Markdown table
	@$(PY) bench/accept.py $(pybuild)/bench/accept_share $(BENCH_ARGS)

.PHONY: bench-http
bench-http: bench-build ## Measure uvicorn on plait's loop and on its peers
	@command -v wrk >/dev/null || tools/apt-install wrk
	@$(VENV_BENCH)/bin/python -m plait bench http $(BENCH_ARGS)

# ---- the rest --------------------------------------------------------------

.PHONY: clean
clean: ## Remove everything that the targets above made
	@rm -rf build build-* dist lab-out .venv .venv-* '$(VENV)' '$(VENV_BENCH)' \
	    .pytest_cache .mypy_cache .ruff_cache
	@find src tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help
help: ## Show this list
	@echo "make TARGET, where TARGET is one of"
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "Variables: PYTHON, VENV, PYTEST_ARGS, LAB_ARGS, BENCH_ARGS, WERROR (see Makefile)."

comma := ,
