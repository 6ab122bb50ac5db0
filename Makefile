# On a fresh machine `make demo` and `make test` do all the set-up themselves.

PYTHON ?= python3
EXTRA ?= cpu
VENV := .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/installed-$(EXTRA)

.PHONY: demo test lint format clean install

install: $(INSTALLED)

$(INSTALLED): pyproject.toml requirements/$(EXTRA).txt
	@echo "installing into $(VENV), a minute or two"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check \
		--constraint requirements/$(EXTRA).txt --editable '.[$(EXTRA),dev]'
	@touch $@

demo: $(INSTALLED)
	$(PY) -m trainer.main --strategy=mirrored

test: $(INSTALLED)
	$(PY) -m pytest

lint: $(INSTALLED)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: $(INSTALLED)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:
	rm -rf $(VENV) build *.egg-info
