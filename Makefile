# Two commands: `make demo` shows what the toolkit does, `make test` proves it. Both build .venv first.
PYTHON ?= python3
BIN = .venv/bin
export PYTHONDONTWRITEBYTECODE =  # each module is compiled once, by the first process that imports it

.venv/installed: pyproject.toml constraints.txt tests/peers.txt
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("landscape needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --no-compile --no-deps --requirement tests/peers.txt
	touch $@

.PHONY: install demo test lint docs figures notebooks benchmark clean
install: .venv/installed

demo: .venv/installed
	$(BIN)/landscape demo --out demo

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

test: lint docs
	$(BIN)/pytest -n 2 --dist worksteal

figures: .venv/installed
	$(BIN)/python figures/make.py

notebooks: .venv/installed
	$(BIN)/jupyter execute --inplace notebooks/*.ipynb

benchmark: .venv/installed
	$(BIN)/python benchmarks/hessian.py $(ARGS)

clean:
	rm -rf .venv demo build dist *.egg-info
