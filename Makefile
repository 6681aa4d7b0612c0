# Every target sets up what it needs, once: `make demo`, `make test`, `make lint`, `make parity`.
# `make demo PYTHON=python3.12 VENV=/somewhere/else` chooses the interpreter and the place.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
HANGS = -o faulthandler_timeout=600 -o faulthandler_exit_on_timeout=true
PIP = $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off --quiet

# Tests of functions, which start no processes: what another version of Python or JAX may break.
QUICK = $(addprefix tests/test_,$(addsuffix .py,architecture adapters answering bert clip config_rules \
	cross_modal_golden losses matching_losses methods metrics optimizers partition ring_loss \
	scoring siglip similarity uniadapter_golden vqa_metrics)) tests/weights/test_directory.py

.PHONY: demo test quick slow lint parity smoke walk docs notebooks browser clean
demo: $(VENV)/.stamp-base
	$(BIN)/python -m uniadapter_jax.demo

# One worker per core, at most 4: every file of tests stays whole, so its fixtures run once. A test
# that hangs says where after ten minutes, and ends its worker.
test: $(VENV)/.stamp-test
	$(BIN)/python -m pytest -n auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder $(HANGS) $(ARGS)

quick: $(VENV)/.stamp-test
	$(BIN)/python -m pytest -n auto --maxprocesses=4 --dist=loadfile $(HANGS) $(QUICK) $(ARGS)

slow: $(VENV)/.stamp-test
	$(BIN)/python -m pytest -m slow $(ARGS)

lint: $(VENV)/.stamp-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

parity: $(VENV)/.stamp-parity
	$(BIN)/python -m pytest -m parity -n auto --maxprocesses=2 --dist=loadfile $(HANGS) $(ARGS)

# The wheel, installed into $(VENV) and used from an empty folder.
smoke: $(VENV)/bin/python
	scripts/smoke_wheel.sh $(abspath $(BIN)/python)

# The commands of the README, in an empty folder.
walk: $(VENV)/.stamp-test
	$(BIN)/python scripts/walk_readme.py

# The pages of docs/ as a site, in site/; a broken link fails.
docs: $(VENV)/.stamp-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The pages in an installed Chromium; without one the tests say so and are skipped.
browser: $(VENV)/.stamp-browser
	$(BIN)/python -m pytest -m browser -rs $(HANGS) tests/search tests/benchmark $(ARGS)

# The notebooks, from the first cell to the last; an error fails.
notebooks: $(VENV)/.stamp-notebooks
	$(BIN)/python scripts/run_notebooks.py

clean:
	rm -rf $(VENV) build dist site *.egg-info

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, $(PYTHON) is " + sys.version.split()[0] + "; try make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.stamp-base: $(VENV)/bin/python setup.py
	@echo "Installing into $(VENV); this takes a minute or two."
	$(PIP) -e .
	@touch $@

$(VENV)/.stamp-test: $(VENV)/.stamp-base
	@echo "Installing the test tools."
	$(PIP) -e '.[test]'
	@touch $@

$(VENV)/.stamp-parity: $(VENV)/.stamp-test
	@echo "Installing PyTorch and transformers, to compare with."
	$(PIP) -e '.[parity]'
	@# Without what they depend on: torchvision is there for CUDA builds of PyTorch only.
	$(PIP) --no-deps open_clip_torch==3.3.0 timm==1.0.31
	@touch $@

$(VENV)/.stamp-docs: $(VENV)/.stamp-base
	@echo "Installing what builds the pages."
	$(PIP) -e '.[docs]'
	@touch $@

$(VENV)/.stamp-browser: $(VENV)/.stamp-test
	@echo "Installing what drives a browser."
	$(PIP) -e '.[browser]'
	@touch $@

$(VENV)/.stamp-notebooks: $(VENV)/.stamp-base
	@echo "Installing what executes notebooks."
	$(PIP) -e '.[notebooks]'
	@touch $@
