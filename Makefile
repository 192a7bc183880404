# make demo   sets everything up and runs the main job on the text that comes with the repository
# make test   sets up what is missing and runs the tests
# make help   the other targets

PYTHON ?= python3
PYTEST_ARGS ?=
# Processes that run tests; each takes up to 4 GB for its ranks.
PYTEST_WORKERS ?= 2

BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test proofs lint format benchmarks-setup benchmarks clean

help:
	@echo 'make setup    virtual environment .venv with the tested versions (PYTHON=python3.12 chooses the interpreter)'
	@echo 'make demo     setup, then text -> corpus -> training on 2 processes -> Hugging Face model -> report, in runs/demo'
	@echo 'make test     setup, then all tests but the long proofs and those that need a GPU (PYTEST_ARGS="-k name" chooses)'
	@echo 'make proofs   setup, then the long proofs: kill loops, a real SLURM, the container image'
	@echo 'make lint     setup, then ruff and mypy'
	@echo 'make format   setup, then rewrite the sources in the house format'
	@echo 'make benchmarks-setup   setup, then the environments with the loaders that ours is measured against'
	@echo 'make benchmarks         measure (about an hour on a quiet machine), then rewrite the tables of the pages in docs/'
	@echo 'make clean    remove .venv, caches and build folders; runs/ and corpora/ stay'

setup: $(STAMP)

# The stamp is written last: an interrupted installation is done again.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 13) else \
	  "pretrain needs Python 3.11 or 3.12, but \"$(PYTHON)\" is %d.%d: run \"make PYTHON=/path/to/python3.11 ...\"" % v)'
	@$(PYTHON) -c 'import ensurepip, venv' || { \
	  echo 'Python has no venv module: on Debian and Ubuntu install the package python3-venv' >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,lint]'
	@touch $(STAMP)

demo: setup
	$(BIN)/pretrain demo

test: setup
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) -m 'not proof and not gpu' $(PYTEST_ARGS)

proofs: setup
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) -m 'proof and not gpu' $(PYTEST_ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The first environment sees the packages of .venv and adds the peers to them; mosaicml's needs other versions of most.
benchmarks-setup: setup
	$(BIN)/python -m venv .venv-benchmarks
	.venv-benchmarks/bin/python -c 'import pathlib, site; own = pathlib.Path(site.getsitepackages()[0]); \
	  other = pathlib.Path(".venv", *own.parts[-3:]).resolve(); \
	  (own / "pretrain.pth").write_text(f"import site; site.addsitedir({str(other)!r})\n")'
	.venv-benchmarks/bin/python -m pip install --quiet --no-deps -r benchmarks/requirements.txt
	$(BIN)/python -m venv .venv-benchmarks-mosaicml
	.venv-benchmarks-mosaicml/bin/python -m pip install --quiet -r benchmarks/requirements-mosaicml.txt

benchmarks:
	.venv-benchmarks/bin/python benchmarks/data.py --json benchmarks/results/data.json
	.venv-benchmarks/bin/python benchmarks/stream_scale.py --json benchmarks/results/stream_scale.json
	.venv-benchmarks/bin/python benchmarks/step.py --json benchmarks/results/step.json
	.venv-benchmarks/bin/python benchmarks/head.py --json benchmarks/results/head.json
	.venv-benchmarks/bin/python benchmarks/stock_modules.py --json benchmarks/results/stock_modules.json
	.venv-benchmarks/bin/python benchmarks/optimizers.py --json benchmarks/results/optimizers.json
	.venv-benchmarks/bin/python benchmarks/loop_overhead.py --json benchmarks/results/loop_overhead.json
	.venv-benchmarks/bin/python benchmarks/checkpoint.py --json benchmarks/results/checkpoint.json
	.venv-benchmarks/bin/python benchmarks/tables.py

clean:
	rm -rf .venv .venv-benchmarks .venv-benchmarks-mosaicml build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
