# Needs only make and Python >= 3.11. Every target makes and reuses its own environment:
# `.venv` holds one stamp a set of extras, made again when pyproject.toml changes.

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2

BIN := $(VENV)/bin
PY := $(BIN)/python

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL: # one pip at a time works on the environment
.PHONY: help demo gallery test test-slow bench docs lint format clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

TOUR := tour ensemble cir short_rates langevin mnist_node optimizers refine_flow

demo: $(VENV)/.stamp-examples ## run an example of each folder, briefly; figures under out/
	@for example in $(TOUR); do \
	    echo "== examples/$$example.py"; \
	    $(PY) examples/$$example.py --fast --out out || exit 1; \
	done

gallery: $(VENV)/.stamp-data demo ## draw the figures of docs/gallery.md anew
	@mkdir -p docs/gallery && cp out/*.png out/*.svg docs/gallery/

test: docs $(VENV)/.stamp-test ## build the docs strictly, then run the quick tests
	$(PY) -m pytest -n $(JOBS)

test-slow: $(VENV)/.stamp-test ## run the tests marked slow
	$(PY) -m pytest -n $(JOBS) -m slow --seed=fresh

bench: $(VENV)/.stamp-bench ## run the quick Brownian benchmarks
	$(PY) -m benchmarks brownian --fast

docs: $(VENV)/.stamp-docs ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet

lint: $(VENV)/.stamp-dev $(VENV)/.stamp-test ## check style, formatting and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright --pythonpath $(PY)

format: $(VENV)/.stamp-dev ## rewrite the sources in the house format
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean: ## remove the environment and everything that was built
	rm -rf $(VENV) out site build dist .pytest_cache .ruff_cache .hypothesis .coverage htmlcov
	find src tests examples benchmarks docs -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("pathax needs Python >= 3.11, got " + sys.version.split()[0] + "; try make PYTHON=python3.12")'
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

# The stem names the extra: .stamp-test installs `pathax[test]` in editable form.
$(VENV)/.stamp-%: pyproject.toml $(VENV)/.created
	$(PY) -m pip install --quiet --editable ".[$*]"
	@touch $@
