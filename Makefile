# Needs only make and Python 3.11 or 3.12; everything else goes into .venv.
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help install demo test test-slow lint types pytest bench gpu-check docs clean

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/installed

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' Makefile

demo: $(STAMP) ## loss of plasticity, its cures and a rescue: a figure and a table in runs/demo
	$(PY) -m launch.demo

test: lint types pytest ## lint, types and tests

lint: $(STAMP) ## ruff: rules and format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(STAMP) ## basedpyright on plastic_jax
	$(PY) -m basedpyright --pythonpath $(PY)

pytest: $(STAMP) ## the tests; ARGS='-k adam' chooses among them
	$(PY) -m pytest -n 2 $(ARGS)

test-slow: $(STAMP) ## kills, races, crash points, corruption, and every case of tests that `test` runs for some
	XLA_FLAGS= $(PY) -m pytest -n 2 -m slow $(ARGS)

bench: $(STAMP) ## steps per second on this machine
	$(PY) -m launch.benchmark

gpu-check: $(STAMP) ## in 8 minutes, all that a new accelerator has to show; OUT=DIR keeps it elsewhere
	$(PY) -m launch.benchmark --accelerator --out=$(or $(OUT),runs/gpu-check)

docs: $(STAMP) ## the documentation, a website in build/site; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet
	@echo "build/site/index.html"

install: $(STAMP) ## set up .venv, as every other target does when it has to

clean: ## remove .venv and caches; results stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# uv installs several times faster than pip. Where it cannot reach a package index that only pip knows of, pip does it.
$(STAMP): pyproject.toml
	@$(PY) -m pip --version >/dev/null 2>&1 || { $(find_python); "$$python" -m venv --clear $(VENV); }
	@echo "installing into $(VENV) (about 1.5 GB)"
	@rm -f $@
	@$(PY) -m pip install --quiet --disable-pip-version-check uv
	@$(PY) -m uv pip install --quiet --python $(PY) -e '.[run,dev]' || $(PY) -m pip install --quiet -e '.[run,dev]'
	@touch $@

define find_python
python=; for candidate in $(or $(PYTHON),python3.12 python3.11 python3); do \
  "$$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
    && { python=$$candidate; break; }; \
done; \
[ "$$python" ] || { echo "error: needs Python 3.11 or 3.12 with its venv module; tried \
$(or $(PYTHON),python3.12 python3.11 python3); install one, or say: make PYTHON=/path/to/python3.12" >&2; exit 1; }
endef
