# make demo [DATASET=orl] [SEED=n] [OUT=dir]   the whole way on built-in data
# make test                                    the tests
PYTHON ?= python3
DATASET ?= glyphs
SEED ?= 0
OUT ?= work_dirs/demo
PIP = .venv/bin/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test lint

demo: .venv/demo
	.venv/bin/python tools/demo.py --dataset $(DATASET) --seed $(SEED) --out $(OUT)

test: .venv/dev
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

lint: .venv/dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports
	.venv/bin/pyrefly check

# A marker for each set of packages: the environment is made once and brought up to date when pyproject.toml changes.
.venv/demo .venv/dev: pyproject.toml
	@test -x .venv/bin/python || { echo "making .venv"; $(PYTHON) -m venv .venv; }
	@echo "installing bctlab and its $(@F) packages into .venv (PyTorch is large: the first time takes minutes)"
	@$(PIP) --editable ".[demo,$(@F)]"
	@test $(@F) = demo || $(PIP) --no-deps insightface
	@touch $@
