# Every target sets up what it needs in .venv, and only when pyproject.toml or constraints.txt changed.

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
RUNTIME := .venv/.runtime
DEVELOPMENT := .venv/.development

.PHONY: simulate compare test bench check format wheel clean

simulate: $(RUNTIME)   ## run federated rounds on this machine; ARGS="--preset emoji" for more
	$(BIN)/fedlora simulate $(ARGS)

compare: $(RUNTIME)    ## methods side by side on a quick suite, and their tables; ARGS="--draws 10" for more
	$(BIN)/fedlora compare deploy/runs/compare/quick.toml --methods fedit,lora_fair \
		--tune train.learning_rate=2e-3,4e-3 --draws 6 --out runs/compare-quick $(ARGS)

test: check            ## all checks, then the tests in two processes; ARGS="-m slow" for the slow ones
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal $(ARGS)

bench: $(DEVELOPMENT)  ## the benchmark tables, also as benchmarks.json; ARGS="help trainer" for some of them
	$(BIN)/python tests/benchmarks/run.py $(ARGS)

check: $(DEVELOPMENT)  ## lint, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(DEVELOPMENT) ## mend what can be mended by itself
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

wheel: $(DEVELOPMENT)  ## what is handed to operators, in dist/: the wheel, the sdist, the versions they were tested with
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist
	$(BIN)/twine check --strict dist/*.whl dist/*.tar.gz
	cp constraints.txt dist/

clean:                 ## remove what the targets made; the runs stay
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis dist benchmarks.json
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first and by itself: asked for by others, pip may take another build of it.
$(RUNTIME): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: $(PYTHON) is `$(PYTHON) --version 2>&1`; expected Python 3.11 or newer: make PYTHON=python3.12" >&2; \
		exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[text]"
	@touch $@

$(DEVELOPMENT): $(RUNTIME)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[text,ray,dev]"
	$(BIN)/python tests/deploy/fetch_helm.py $(BIN)
	@touch $@
