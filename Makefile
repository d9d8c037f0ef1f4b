.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
JOBS ?= 3
PYTEST = $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder
export NO_ALBUMENTATIONS_UPDATE = 1
unexport PYTHONDONTWRITEBYTECODE  # else every process compiles every test and module anew

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## */\t/'

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@

install: .venv/installed  ## make .venv and install capfilt with its development tools

demo: install  ## the main job on a drawn web: download to retrained models, in minutes
	$(BIN)/capfilt demo --run runs/demo

test: install  ## the whole test suite
	$(PYTEST)

test-fast: install  ## the tests that start no Ray, no browser and no other process
	$(PYTEST) -m 'not slow'

check: install  ## ruff, mypy, layers, versions that go together
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pip check

fix: install  ## apply what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: install  ## write down the versions that are here, which the tests have passed with
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' > requirements.lock

lowest:  ## the fast tests with the oldest versions that pyproject.toml allows, in .venv-lowest
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet uv
	.venv-lowest/bin/uv pip install --quiet --python .venv-lowest/bin/python --resolution lowest-direct -e '.[dev]'
	.venv-lowest/bin/python -m pytest -q -m 'not slow'

.venv-audit/installed:
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install --quiet pip-audit cyclonedx-bom
	touch $@

audit: .venv-audit/installed  ## known vulnerabilities of the versions in requirements.lock
	.venv-audit/bin/pip-audit -r requirements.lock --no-deps --disable-pip

sbom: .venv-audit/installed  ## write sbom.json: the packages of requirements.lock as CycloneDX
	.venv-audit/bin/cyclonedx-py requirements requirements.lock --of JSON -o sbom.json

docs: install  ## make the pages of fields and reasons anew
	$(BIN)/python -m pipeline.manifest.reference docs

.PHONY: help install demo test test-fast check fix lock lowest audit sbom docs
