# make train   install into .venv if needed, then train the default preset
# make test    install what tests need, too, then lint and run the tests
# make lint    ruff and mypy
# make bench   install the peers of requirements-bench.txt, too, then train and measure our model beside them: hours;
#              an interrupted run continues where it was. Other sizes: make bench BENCH="--seconds 60 --sweep-seconds 0"
# make bench-siblings
#              train the kinds of this package side by side and measure them: an hour. BENCH as above
# make clean   remove .venv, caches and build products; checkpoints and runs stay
#
# A particular interpreter: make train PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.dev-installed
BENCH_STAMP := $(VENV)/.bench-installed

.PHONY: train test lint bench bench-siblings clean
.DEFAULT_GOAL := train

# The stamps are written last: an installation that was interrupted is started again.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(STAMP): pyproject.toml requirements.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --requirement requirements.txt
	touch $@

# One resolution for everything, so that the pin of torch decides what the others get.
$(DEV_STAMP): pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --editable '.[dev]'
	touch $@ $(STAMP)

train: $(STAMP)
	$(VENV)/bin/python train.py

test: lint
	$(VENV)/bin/python -m pytest -n auto --dist loadfile
	@echo "make test: lint and tests passed"

lint: $(DEV_STAMP)
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .
	$(VENV)/bin/python -m mypy

# One peer after the other, each beside the pins of the project: one that cannot be installed is left out.
$(BENCH_STAMP): $(DEV_STAMP) requirements-bench.txt
	@failed=; for peer in $$(grep -v '^#' requirements-bench.txt); do \
		$(VENV)/bin/python -m pip install --quiet --editable '.[dev]' "$$peer" || \
			{ failed=1; echo "make bench: continues without $$peer" >&2; }; \
	done; test -n "$$failed" || touch $@

bench: $(BENCH_STAMP)
	$(VENV)/bin/python -m benchmarks.suite $(BENCH)

bench-siblings: $(DEV_STAMP)
	$(VENV)/bin/python -m benchmarks.siblings $(BENCH)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
