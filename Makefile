# Every target sets up .venv by itself; the stamp file makes the second time instant.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
PAIR := env OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadgroup
PICTURES := queue queue-dark queue-narrow job job-narrow search model tried dataset operations submit sign-in
MARKS_UNIT := not integration and not e2e and not gpu

# Hundreds of processes are started; modules that are compiled once need not be compiled by each of them.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-unit check format fuzz bench bench-architectures bench-data bench-model bench-pages bench-queue kill-points screenshots soak soak-queue test-all lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-19s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv with everything in it

$(STAMP): pyproject.toml requirements.lock scripts/setup.py
	@command -v $(PYTHON) >/dev/null || { echo "error: there is no $(PYTHON); install Python 3.11.4 or newer" >&2; exit 1; }
	@$(PYTHON) scripts/setup.py
	@touch $@

demo: $(STAMP) ## from raw pictures to a registered model, then predictions in demo-output/
	@$(BIN)/python scripts/demo.py

test: test-unit ## all tests: unit, then integration, then end to end
	$(BIN)/python scripts/with_postgres.py $(PAIR) tests/unit/platform tests/integration -m "not gpu" -k postgres
	$(PAIR) tests -m "integration and not gpu"
	$(BIN)/pytest tests/e2e -m "e2e and not gpu"

test-all: test soak ## all tests, then five minutes of faults

test-unit: $(STAMP) ## the quick tests: no network, no Ray
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile tests/unit -m "$(MARKS_UNIT)"

check: $(STAMP) ## formatting, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## put the code into its format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP) ## every benchmark that needs no files of yours, one after the other
	@set -e; for script in $(filter-out %/bench_codecs.py %/bench_recovery.py %/bench_data.py,$(wildcard benchmarks/bench_*.py)); do echo "== $$script"; $(BIN)/python "$$script"; done

bench-data: $(STAMP) ## the data path beside other loaders; ARGS="--photos DIR" takes real pictures
	@$(BIN)/python -c "import albumentations" 2>/dev/null \
		|| $(BIN)/python -m pip install --quiet --constraint requirements.lock --editable ".[bench]"
	@$(BIN)/python benchmarks/bench_data.py $(ARGS)
	@$(BIN)/python benchmarks/bench_reading.py

bench-architectures: $(STAMP) ## every architecture at toy size, side by side
	@$(BIN)/python benchmarks/compare_architectures.py $(ARGS)

bench-queue: $(STAMP) ## submits and scheduling passes with 10,000 jobs
	@$(BIN)/python benchmarks/bench_queue.py $(ARGS)

bench-pages: $(STAMP) ## the web page over 10,000 jobs, and what open pages cost
	@$(BIN)/python benchmarks/bench_pages.py $(ARGS)

fuzz: $(STAMP) ## 20,000 requests made from the OpenAPI document against a real service; ARGS="--seed N"
	@$(BIN)/python -c "import schemathesis" 2>/dev/null \
		|| $(BIN)/python -m pip install --quiet --constraint requirements.lock --editable ".[fuzz]"
	@PYTHONPATH=tests $(BIN)/python tests/fuzz_api.py $(ARGS)

kill-points: $(STAMP) ## trainings killed at 100 random moments beside undisturbed ones; half an hour
	@PYTHONPATH=tests $(BIN)/python tests/kill_points.py $(ARGS)

screenshots: $(STAMP) ## the pictures of the pages in docs/pictures; needs Chromium
	@$(BIN)/python scripts/screenshots.py docs/pictures $(PICTURES)

bench-model: $(STAMP) ## the model beside the plain way: forward, step, memory
	@$(BIN)/python benchmarks/bench_model.py $(ARGS)

soak: $(STAMP) ## five minutes of a real stack under a fault every 15 s; ARGS="--minutes N --seed N"
	@PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python tests/soak_stack.py $(ARGS)

soak-queue: $(STAMP) ## 10,000 jobs under 1,000 kills of the service, on SQLite and PostgreSQL; ARGS="--seed N"
	PYTHONPATH=tests $(BIN)/python tests/soak_queue.py $(ARGS)
	PYTHONPATH=tests $(BIN)/python scripts/with_postgres.py $(BIN)/python tests/soak_queue.py --database postgres --servers 2 $(ARGS)

lock: $(STAMP) ## write requirements.lock from what .venv holds now
	$(BIN)/python scripts/lock.py requirements.lock

clean: ## remove .venv, caches and the demo's output
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist demo-output
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
