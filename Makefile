# `make demo` and `make test` do all the set-up on a machine with Python >= 3.10 and a C++ compiler; run again they only rebuild
# what changed. torch is pinned to the tested version and installed first, so that the kernels are built against it.
PYTHON ?= python3
TORCH  ?= torch==2.13.0
VENV   := .venv
QLIB   := .venv-qlib
MODEL  ?= tabnet
SOURCES := pyproject.toml setup.py $(shell find csrc -type f)
INSTALL := install --quiet --disable-pip-version-check

.PHONY: help install demo test test-qlib bench lint clean

help:
	@echo "make demo       train a model on the bundled market data (MODEL=tabnet, alstm, lstm, gru, localformer, transformer, gats, hist, sfm)"
	@echo "make test       all tests"
	@echo "make test-qlib  parity with Qlib itself, in an environment of its own"
	@echo "make bench      benchmarks against Qlib, torch, torch.compile and entmax, on the CPU"
	@echo "make lint       ruff"

$(VENV)/torch:
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip $(INSTALL) --upgrade pip setuptools wheel
	$(VENV)/bin/python -m pip $(INSTALL) "$(TORCH)"
	@touch $@

$(VENV)/package: $(VENV)/torch $(SOURCES)
	$(VENV)/bin/python -m pip $(INSTALL) --no-build-isolation --editable .
	@touch $@

$(VENV)/test: $(VENV)/package
	$(VENV)/bin/python -m pip $(INSTALL) --no-build-isolation --editable ".[test]"
	@touch $@

$(QLIB)/torch:
	$(PYTHON) -m venv $(QLIB)
	$(QLIB)/bin/python -m pip $(INSTALL) --upgrade pip setuptools wheel
	$(QLIB)/bin/python -m pip $(INSTALL) "$(TORCH)"
	$(QLIB)/bin/python -m pip $(INSTALL) "pandas<3" "pyqlib==0.9.7"
	@touch $@

$(QLIB)/package: $(QLIB)/torch $(SOURCES)
	$(QLIB)/bin/python -m pip $(INSTALL) --no-build-isolation --editable ".[bench]"
	@touch $@

install: $(VENV)/package

demo: $(VENV)/package
	$(VENV)/bin/python -m alphakernels demo --model $(MODEL)

test: $(VENV)/test
	$(VENV)/bin/python -m pytest tests

test-qlib: $(QLIB)/package
	$(QLIB)/bin/python -m pytest tests/qlib

bench: $(QLIB)/package
	@# A process a file: the memory that one has used and freed would make another's allocations cheaper than they are for a user.
	@for file in benchmarks/test_*.py; do $(QLIB)/bin/python -m pytest $$file --benchmark-disable-gc || exit 1; done

lint: $(VENV)/test
	$(VENV)/bin/python -m ruff check src tests benchmarks setup.py

clean:
	rm -rf build dist src/*.egg-info src/alphakernels/*.so $(VENV) $(QLIB)
