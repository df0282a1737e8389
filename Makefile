# Each target sets up what it needs; `make help` lists them.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH ?= torch==2.13.0

.DEFAULT_GOAL := help
.PHONY: help install demo test test-fast quality tracked style benchmark clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(STAMP) ## Make the virtual environment, with the tested versions

# torch first: asked for by another package, it would come with gigabytes of CUDA libraries.
$(STAMP): setup.cfg pyproject.toml .ci/requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet $(TORCH) --requirement .ci/requirements.txt
	$(BIN)/pip install --quiet --no-build-isolation --no-deps --editable .
	touch $@

demo: $(STAMP) ## Draw clips, train on them, save, reload and name three intents (a few minutes); leaves the page its model
	$(BIN)/python examples/demo/run_demo.py --output_dir demo_output

# One thread a worker: tensors of tests are tiny, and threads that wait for one another crawl on a busy machine.
PYTEST := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test: $(STAMP) ## Run all tests (no network, no GPU)
	$(PYTEST)

test-fast: $(STAMP) ## Run the tests that are not marked slow (about a minute)
	$(PYTEST) -m "not slow"

quality: $(STAMP) tracked ## Check style and that nothing is tracked that should not be
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

tracked:
	@! git ls-files | grep -E '\.(pyc|pkl|pt|bin)$$|__pycache__|\.DS_Store' || { echo 'tracked files that should not be'; exit 1; }
	@! git grep -nIE '/(home|root)/' -- ':!Makefile' || { echo 'a path of one machine is in a tracked file'; exit 1; }

style: $(STAMP) ## Reformat the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmark: $(STAMP) ## Measure speed and memory as ratios within one run
	$(BIN)/python examples/benchmarks/benchmark.py --quick --output_dir benchmark_output

clean: ## Remove what was built
	rm -rf $(VENV) demo_output benchmark_output build *.egg-info
