# On a fresh machine `make demo` and `make test` do all the set-up themselves.

PYTHON ?= python3
EXTRA ?= cpu
VENV := .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/installed-$(EXTRA)

.PHONY: demo test lint bench format clean install

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
	$(PY) -m pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal

lint: $(INSTALLED)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# How fast it starts and trains; with PyTorch beside it, if that is installed.
bench: $(INSTALLED)
	@test -f data/demo/dataset.json || { echo "error: make demo first: it makes data/demo"; exit 2; }
	$(PY) -m benchmarks.startup
	$(PY) -m benchmarks.train_throughput --data_dir=data/demo --model=tiny --seconds=10

format: $(INSTALLED)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:
	rm -rf $(VENV) build *.egg-info
