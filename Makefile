# make install   .venv with everything, development included
# make train     trains the recipe const (generated images, minutes) to its end
# make test      the tests, without those marked slow: under ten minutes on two cores
# make test-slow   those marked slow
# make coverage  all of them, with the lines and branches that no test reaches; fails below the floor
# make lowest    all of them with exactly the lowest versions that pyproject.toml allows (TESTS="tests/models -x" for some)
# make check     linters and types
# make reference   writes the table of all keys into docs/training.md
# make bench     speed beside the plain way, one table (PARTS=step for one part; all take minutes)
# make fuzz      damages files of others at random, the C++ decoder under sanitizers (SECONDS=600 SEED=3; a minute each)
# make timm-tests   timm's own tests on our networks (NAMES=gaea_tiny for one; all take about ten minutes on two cores)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: install train test test-slow coverage lowest check format reference bench fuzz timm-tests

install: $(READY)

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

train: $(READY)
	$(BIN)/gaeanet train const --resume

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal --durations=15 -m "not slow"

test-slow: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal --durations=15 -m slow

coverage: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal --cov --cov-report=term-missing:skip-covered --cov-fail-under=89

lowest: $(READY)
	$(BIN)/python tests/lowest.py $(or $(TESTS),-n 2 --dist worksteal)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

reference: $(READY)
	$(BIN)/python -m gaeanet.config.reference docs/training.md

bench: $(READY)
	$(BIN)/python benchmarks/speed.py $(PARTS)

fuzz: $(READY)
	$(BIN)/python benchmarks/fuzz.py --seconds $(or $(SECONDS),60) --seed $(or $(SEED),0)

timm-tests: $(READY)
	$(BIN)/python tests/timm_suite.py $(NAMES)

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
