# Each target does all of its own set-up: a virtual environment, then pip with the pinned versions.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test slow check clean

demo: $(READY)  ## train a minute, pack, verify, add a row to the runs table
	$(BIN)/speedrun run --track pocket

test: $(READY)  ## the suite, without what is marked slow
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist worksteal -m "not slow"

slow: $(READY)  ## the rest: compiles graphs, minutes
	$(BIN)/pytest -m slow

check: $(READY)  ## what CI runs before the tests: lint, format, types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(READY)
