# Two commands: `make run` trains and judges an agent on the simulated market, `make test` checks everything.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# one thread per process measured faster than two for networks of this size, and leaves a core for the env
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help install run test checks kernels lint types unit bench soak clean

help:
	@echo "make run    train ppo_btc on the simulated market, evaluate it, print where the report lies"
	@echo "make test   environment, lint, types, all tests with coverage"
	@echo "make bench  the benchmarks, each beside its rival"
	@echo "make soak   live accounts, killed again and again on an exchange that misbehaves (about a minute a seed)"
	@echo "make clean  remove the environment and everything built"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt __init__.py
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else f"perpgym needs Python 3.11 or newer, this is {v[0]}.{v[1]}; try: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $(STAMP)

run: $(STAMP)
	$(BIN)/python train.py +experiment=ppo_btc data=simulated run_dir=runs/ppo_btc_simulated overwrite=true
	$(BIN)/python evaluate.py run=runs/ppo_btc_simulated
	@echo
	@echo "The same on real data (downloads the dates in the config):"
	@echo "  $(BIN)/python train.py +experiment=ppo_btc run_dir=runs/ppo_btc"
	@echo "  $(BIN)/python evaluate.py run=runs/ppo_btc"

# compiling the kernels takes a minute on one core, as long as linting and typing on the other
test: $(STAMP)
	@$(MAKE) --no-print-directory -j 2 checks kernels
	@$(MAKE) --no-print-directory unit

checks: lint
	@$(MAKE) --no-print-directory types

kernels: $(STAMP)
	@$(BIN)/python -c 'import gymnasium, perpgym; from perpgym.envs.exchange.market import Replay; from perpgym.envs.exchange.warm import warm_up; env = gymnasium.make("perpgym/Perp-v0"); env.reset(seed=0); env.step(env.action_space.sample()); warm_up(Replay(env.unwrapped.tape))'

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	@mkdir -p build/lint && ln -sfn ../.. build/lint/perpgym
	$(BIN)/mypy -p perpgym

unit: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile --cov --cov-fail-under=85

bench: $(STAMP)
	for b in benchmarks/bench_*.py; do $(BIN)/python $$b || exit 1; done

# resumable: a finished seed is not run again
soak: $(STAMP)
	$(BIN)/python benchmarks/soak.py --out build/soak

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
