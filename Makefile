# A fresh clone needs Python 3.11 or newer and make; everything else is installed into .venv by the first target.
#   make demo    reconstruct a sample and say where to look
#   make test    lint, types, tests
#   make bench   speed and accuracy, by hand (see bench/)
#   make wheelhouse  the wheels of the runtime with hashes and bill of materials, for machines without a network
#   make export  install what trains and exports the mask network (torch: large); its tests then run with `make test`
#   make clean   remove what the targets above made

SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
STAMPS := $(VENV)/stamps

# The first Python that is new enough; say PYTHON=... to choose another.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$python; break; }; done)

.PHONY: demo test lint bench export wheelhouse clean help
.DELETE_ON_ERROR:

help:
	@sed -n 's/^#   //p' Makefile

demo: $(STAMPS)/runtime
	$(BIN)/qsm-edge run dicom_samples/siemens_classic demo_output
	@echo
	@echo "The susceptibility series, the mask and the report are below demo_output/."
	@echo "Open in a browser: $$(ls -d demo_output/*/report.html)"

test: $(STAMPS)/dev lint
	$(BIN)/python -m pytest

lint: $(STAMPS)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMPS)/dev
	$(BIN)/python -m bench.run

export: $(STAMPS)/export

wheelhouse: $(STAMPS)/venv
	$(BIN)/python deploy/wheelhouse/build.py dist/wheelhouse

clean:
	rm -rf $(VENV) demo_output build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache bench/out
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Each stamp says that an installation succeeded; it is made again when what it depends on is newer.
$(STAMPS)/venv:
	@test -n "$(PYTHON)" || { echo "qsm-edge needs Python 3.11 or newer; install it, or say make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
		echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade 'pip>=25.1'
	@mkdir -p $(STAMPS)
	@touch $@

$(STAMPS)/runtime: $(STAMPS)/venv pyproject.toml
	@echo "installing qsm-edge and what it needs into $(VENV) (once; a minute or two)"
	$(PIP) install --editable '.[cpu]'
	@touch $@

$(STAMPS)/dev: $(STAMPS)/venv pyproject.toml
	@echo "installing qsm-edge and its development tools into $(VENV) (once; a minute or two)"
	$(PIP) install --editable '.[cpu,codecs,openrecon]' --group dev
	@touch $@ $(STAMPS)/runtime

$(STAMPS)/export: $(STAMPS)/dev pyproject.toml
	$(PIP) install --group export
	@touch $@
