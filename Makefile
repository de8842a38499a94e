# make train   install into .venv if needed, then train the default preset
# make test    install if needed, then lint and run the tests
# make lint    ruff and mypy
# make clean   remove .venv, caches and build products; checkpoints and runs stay
#
# A particular interpreter: make train PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed

.PHONY: train test lint clean
.DEFAULT_GOAL := train

# One resolution for everything, so that the pin of torch decides what the others get.
# The stamp is written last: an installation that broke off is taken up again.
$(STAMP): pyproject.toml requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable '.[dev]'
	touch $@

train: $(STAMP)
	$(VENV)/bin/python train.py

test: lint
	$(VENV)/bin/python -m pytest
	@echo "make test: lint and tests passed"

lint: $(STAMP)
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .
	$(VENV)/bin/python -m mypy

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
