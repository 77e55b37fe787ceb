PYTHON ?= python3
BIN = .venv/bin

.PHONY: demo test test-slow test-gpu test-arviz1 test-bridges lint docs bench sbibm clean

demo: .venv/installed
	$(BIN)/python tutorials/01_joint_prediction.py

# In as many processes as there are cores, each with one thread; the tests of a file stay together.
test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --numprocesses=auto --maxprocesses=8 --dist=loadfile

test-slow: .venv/installed
	$(BIN)/python -m pytest -q -m slow

test-gpu: .venv/installed
	$(BIN)/python -m pytest -q -m gpu

# What talks to ArviZ, with its 1.x line: its three parts run on every Python that we support.
test-arviz1: .venv-arviz1/installed
	.venv-arviz1/bin/python -m pytest -q tests/test_datatree.py tests/test_loo.py tests/test_joint_diagnostics.py \
		tests/test_amortised_trees.py tests/test_arviz_plots.py

# What NumPyro and PyMC users get, each in an environment of its own, with the doctests of its bridge.
test-bridges: .venv-numpyro/installed .venv-pymc/installed
	.venv-numpyro/bin/python -m pytest -q tests/bridges/test_numpyro.py pyro_arbuf/bridges/jax.py pyro_arbuf/bridges/numpyro.py
	.venv-pymc/bin/python -m pytest -q tests/bridges/test_pymc.py pyro_arbuf/bridges/pymc.py

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# The site, in build/docs/index.html: offline, with warnings as errors, and with every reference and link between pages checked.
docs: .venv/docs-installed
	$(BIN)/python -m sphinx -W --keep-going -n -q docs build/docs

bench: .venv/installed sbibm
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/in_pyro.py
	$(BIN)/python benchmarks/checks.py
	for model in gp-1d-noisy gp-1d sawtooth; do $(BIN)/python benchmarks/quality.py $$model || exit 1; done
	for what in gaussian ddm multisensory two-moons gaussian-linear amortize; do $(BIN)/python benchmarks/sbi.py $$what || exit 1; done
	$(BIN)/python benchmarks/draft_verify.py
	$(BIN)/python benchmarks/predictive_resampling.py
	$(BIN)/python benchmarks/large_contexts.py
	$(BIN)/python benchmarks/choices.py
	$(BIN)/python benchmarks/eeg.py
	$(BIN)/python benchmarks/tabular.py --folder runs/tabular --num-splits 20
	for model in ar1 rescorla-wagner; do $(BIN)/python benchmarks/series.py $$model || exit 1; done
	for what in pair poisson choice-rt; do $(BIN)/python benchmarks/outcomes.py $$what --folder runs/outcomes || exit 1; done

# The observations and reference draws of sbibm, files of its package, which is never imported.
sbibm: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target .sbibm sbibm

# One environment for everything. torch comes first, so that no dependency asks for another build of it.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed; make PYTHON=..."'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test,lint]"
	touch $@

.venv/docs-installed: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	touch $@

# arviz-plots 0.8 reads neither matplotlib 3.11 nor xarray from 2026.3 on.
.venv-arviz1/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-arviz1
	.venv-arviz1/bin/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	.venv-arviz1/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]" arviz-base "arviz-stats[xarray]"
	.venv-arviz1/bin/pip uninstall --quiet --yes arviz
	.venv-arviz1/bin/pip install --quiet --disable-pip-version-check "arviz-plots[matplotlib]==0.8.0" "matplotlib<3.11" "xarray<2026.3"
	touch $@

.venv-numpyro/installed .venv-pymc/installed: .venv-%/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	.venv-$*/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test,$*]"
	touch $@

clean:
	rm -rf .venv .venv-arviz1 .venv-numpyro .venv-pymc build dist *.egg-info docs/api docs/models docs/tutorials/[0-9]*.md .pytest_cache .ruff_cache .hypothesis
