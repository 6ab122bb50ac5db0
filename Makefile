# On a fresh machine every target sets up what it needs by itself.

PYTHON ?= python3
EXTRA ?= cpu
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check
PYTEST := $(PY) -m pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal
INSTALLED := $(VENV)/installed-$(EXTRA)
INSTALLED_ALL := $(VENV)/installed-$(EXTRA)-all
INSTALLED_DOCS := $(VENV)/installed-$(EXTRA)-docs

.PHONY: install demo test test-all lint format docs bench clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml requirements/$(EXTRA).txt
	@echo "installing into $(VENV), a minute or two"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PIP) --constraint requirements/$(EXTRA).txt --editable '.[$(EXTRA),dev]'
	@touch $@

$(INSTALLED_ALL): $(INSTALLED) requirements/preflight.txt requirements/extras.txt
	@$(PY) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: make test-all needs Python 3.11 or later: make PYTHON=python3.11 test-all"; exit 2; }
	@echo "installing CTranslate2, Dask, MkDocs, TensorFlow Text, py3langid, JAX with the compilers of TPUs and GPUs, a minute or two"
	@$(PIP) --constraint requirements/$(EXTRA).txt --constraint requirements/preflight.txt \
		--constraint requirements/extras.txt --editable '.[$(EXTRA),dev,dask,docs,export,langid,preflight,preflight-gpu,serve]'
	@touch $@

$(INSTALLED_DOCS): $(INSTALLED) requirements/extras.txt
	@$(PIP) --constraint requirements/$(EXTRA).txt --constraint requirements/extras.txt \
		--editable '.[$(EXTRA),dev,docs]'
	@touch $@

demo: $(INSTALLED)
	$(PY) -m trainer.main --strategy=mirrored

test: $(INSTALLED)
	$(PYTEST)

# Also the tests marked distributed, docs, export, faults, langid, preflight and slow, and more examples of each property.
test-all: $(INSTALLED_ALL)
	TEST_EXAMPLES=2000 $(PYTEST) -m ''

lint: $(INSTALLED)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports --no-logo --no-cache

format: $(INSTALLED)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

# The site, in build/site; building it needs nothing from the net.
docs: $(INSTALLED_DOCS)
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet
	@echo "open build/site/index.html; its search needs a server: $(PY) -m http.server --directory build/site"

# How fast training starts and runs; beside PyTorch, if that is installed.
bench: $(INSTALLED)
	@test -f data/demo/dataset.json || { echo "error: make demo first: it makes data/demo"; exit 2; }
	$(PY) -m benchmarks.startup
	$(PY) -m benchmarks.train_throughput --data_dir=data/demo --model=tiny --seconds=10

clean:
	rm -rf $(VENV) build *.egg-info
