# Each target makes what it needs: a virtual environment in .venv with the versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# One test process more than cores, since some tests wait; at most four, each of which takes two gigabytes.
PYTEST = $(BIN)/python -m pytest --quiet --numprocesses $$($(BIN)/python -c "import os; print(min(4, os.cpu_count() + 1))")

PROMPT ?= a large red metal sphere on a blue background

.PHONY: demo test coverage browser check types layers site docs full-size clean

demo: $(VENV)/installed  ## Set up and draw the first picture.
	$(BIN)/ssd1b generate "$(PROMPT)" --seed 0 --out pictures

test: $(VENV)/installed-dev  ## Set up and run every test that needs neither a GPU nor a full-size model.
	$(PYTEST)

coverage: $(VENV)/installed-dev  ## As test, and print the share of lines that the tests ran, by module.
	$(PYTEST) --cov

browser: $(VENV)/installed-dev  ## Find a Chromium for the browser tests; root on Debian installs it.
	$(BIN)/python tests/browsers.py

check: $(VENV)/installed-dev  ## Lint, types, layers, links of the documentation.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) --no-print-directory --jobs 2 types layers site

# The type checker takes as long as everything else together, on one core.
types:
	$(BIN)/pyright --pythonpath $(BIN)/python

layers:
	$(BIN)/lint-imports --no-cache

site:
	$(BIN)/zensical build --clean --strict

docs: $(VENV)/installed-docs  ## Write the references and build the site in site/; a broken link fails.
	$(BIN)/python tools/reference.py
	$(MAKE) --no-print-directory site

full-size: $(VENV)/installed-dev  ## Draw and distill SSD-1B and SDXL at full size on random weights: 20 GB of memory, ten minutes.
	$(BIN)/python -m pytest --full-size tests/full_size

# torch goes first and pinned, so that no other package pulls in another build of it.
$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) torch
	$(INSTALL) --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(INSTALL) --editable '.[dev]'
	$(INSTALL) --no-deps spandrel  # see docs/adr/0031-upscalers.md
	touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(INSTALL) --editable '.[docs]'
	touch $@

clean:
	rm -rf $(VENV)
