# Every target does its own set-up. `make help` lists them.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# Workers are started by the hundred: they keep their bytecode rather than make it anew, which takes longer than all else.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast test-faults soak check lock schemas bench-latency bench-throughput bench-ingest bench-churn bench-blind bench-false-alarms bench-quality fuzz clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sort | awk -F':.*## ' '{printf "  %-18s %s\n", $$1, $$2}'

setup: $(READY)  ## Make .venv from requirements.lock (Python 3.11-3.13)

$(READY): requirements.lock pyproject.toml client/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] < (3, 14) else "Palisade needs Python 3.11, 3.12 or 3.13: make PYTHON=python3.12 ...")'
	@echo "setting up $(VENV) (once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check 'uv>=0.5,<1'
	@UV_PYTHON_DOWNLOADS=never $(BIN)/uv pip sync -q --python $(BIN)/python --require-hashes requirements.lock
	@UV_PYTHON_DOWNLOADS=never $(BIN)/uv pip install -q --python $(BIN)/python --no-deps -e client -e .
	@touch $(READY)

SEED ?= 1
demo: $(READY)  ## The main job on real data: five attacks and faults, seen, answered, released, proven (SEED=n)
	@$(BIN)/python -m palisade.demo --seed $(SEED)

# Stages of processes wait half of their time: two workers take a file of tests each, the slow ones first.
test: $(READY)  ## All tests, real Kafka included
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-fast: $(READY)  ## The tests that need no Apache Kafka and no long run
	@$(BIN)/python -m pytest -q -m 'not kafka and not slow'

check: $(READY)  ## ruff, mypy --strict, import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@cd client && ../$(BIN)/mypy --strict -p palisade_client
	@$(BIN)/lint-imports

bench-latency: $(READY)  ## From a caller's first event over its pattern to its first refused answer
	@$(BIN)/python -m benchmarks.latency

bench-throughput: $(READY)  ## Predictions a second on one core, beside stock Faust
	@$(BIN)/python -m benchmarks.throughput

bench-ingest: $(READY)  ## Requests and responses paired a second on one core
	@$(BIN)/python -m benchmarks.ingest

bench-churn: $(READY)  ## A million callers and 100,000 endpoint names in a minute, twelve minutes in all: memory of every process, and who stays limited (ARGS="--minutes n")
	@$(BIN)/python -m benchmarks.churn $(ARGS)

bench-blind: $(READY)  ## Seconds without an outcome after a kill -9 of each role, and a restart with the state of 1,000 endpoints (ARGS="--trials n --roles respond")
	@$(BIN)/python -m benchmarks.blind_windows $(ARGS)

bench-false-alarms: $(READY)  ## False alarms of each detector on stationary data, beside the rate it states
	@$(BIN)/python -m benchmarks.false_alarms $(ARGS)

test-faults: $(READY)  ## Every fault of our own stack at length, each proven by the checker (ARGS="--only F1,F6" or "--short")
	@$(BIN)/python -m tests.faults $(ARGS)

MINUTES ?= 10
soak: $(READY)  ## Random faults on Apache Kafka for MINUTES, with the slope of each process's memory (MINUTES=30)
	@$(BIN)/python -m tests.faults.soak --minutes $(MINUTES) $(ARGS)

fuzz: $(READY)  ## Mutated records into every decoder; status 1 on an exception that nobody declared (MINUTES=n, ARGS="--seed n")
	@$(BIN)/python -m tests.fuzz --minutes $(MINUTES) $(ARGS)

bench-quality: $(READY)  ## How well the detectors of content tell, beside what people use instead (QUICK=1, DATA=folder, SEED=n)
	@$(BIN)/python -m benchmarks.quality --seed $(SEED) $(if $(QUICK),--quick) $(if $(DATA),--data $(DATA)) $(ARGS)

schemas: $(READY)  ## Write the JSON Schemas and the DDL again from the contracts
	@$(BIN)/python -m schemas.generate

lock: $(READY)  ## Resolve requirements.lock again from pyproject.toml
	@$(BIN)/uv pip compile pyproject.toml --extra dev --universal --generate-hashes --no-emit-package palisade-client --no-header -q -o requirements.lock

clean:  ## Remove .venv and caches
	@rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build *.egg-info client/*.egg-info
