# Two targets set everything up: `make demo` and `make test`.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help demo test lint format types clean

help:
	@echo "make demo   install and run the main job on embedded data (a few minutes, most of them the download)"
	@echo "make test   install and run the tests"
	@echo "make lint   check format and style;  make types   check types;  make format   apply the format"

$(VENV)/.created:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "wcompress needs Python 3.11 or newer: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.demo: pyproject.toml constraints.txt $(VENV)/.created
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,report]'
	touch $@

$(VENV)/.test: pyproject.toml constraints.txt $(VENV)/.created
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

demo: $(VENV)/.demo
	$(BIN)/wcompress demo -o demo-output -f

test: $(VENV)/.test
	$(BIN)/python -m pytest

lint: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.test
	$(BIN)/mypy

format: $(VENV)/.test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache demo-output
