# make demo: the two jobs on the small model and dataset in demo/, without network or GPU.
# make test, make test-image, make lint: what .ci/run calls. make bench: ratios of the usual recipe to ours.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= build/demo
ROUNDS ?= 20

.DEFAULT_GOAL := help
.PHONY: help install demo test test-image soak lint bench bench-train bench-evaluate bench-quality bench-check lock clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

install: $(VENV)/installed ## make .venv and install the pinned versions

$(VENV)/installed: requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --requirement requirements.txt
	$(BIN)/pip install --quiet --no-deps --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed requirements-dev.txt
	$(BIN)/pip install --quiet --requirement requirements-dev.txt
	touch $@

demo: $(VENV)/installed ## preprocess, train and transcribe with what demo/ holds
	rm -rf $(DEMO)
	$(BIN)/python demo/run.py --output $(DEMO)

test: $(VENV)/installed-dev ## run the tests
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

test-image: $(VENV)/installed-dev ## build the container images and run the jobs in them
	tests/image/with-engine $(BIN)/python -m pytest -m image --confcutdir=tests/image tests/image

soak: $(VENV)/installed-dev ## kill both jobs at random moments, ROUNDS times over
	$(BIN)/python -m tests.soak --rounds $(ROUNDS)

lint: $(VENV)/installed-dev ## check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(VENV)/installed-dev ## print ratios of the usual recipe to ours
	$(BIN)/python -m benchmarks

bench-train: $(VENV)/installed-dev ## compare training with the usual recipe's: speed and memory
	$(BIN)/python -m benchmarks.train

bench-evaluate: $(VENV)/installed-dev ## compare evaluation with the stock trainer's: speed and memory
	$(BIN)/python -m benchmarks.evaluate

bench-quality: $(VENV)/installed-dev ## compare what packed and unpacked training learn (needs espeak-ng)
	$(BIN)/python -m benchmarks.quality

bench-check: $(VENV)/installed-dev ## run the benchmarks in their quick form, which shows that they run
	$(BIN)/python -m pytest -m bench tests/test_benchmarks.py

COMPILE = $(BIN)/uv pip compile pyproject.toml --universal --no-header --no-annotate --quiet --fork-strategy fewest
NOT_CUDA = grep -vE '^(nvidia-|cuda-|triton)'

lock: $(VENV)/installed-dev ## write the requirements files anew, within the ranges of pyproject.toml
	$(BIN)/pip install --quiet uv
	mkdir -p build
	$(COMPILE) --extra dev | $(NOT_CUDA) > build/dev.txt
	$(COMPILE) --constraint build/dev.txt | $(NOT_CUDA) > build/run.txt
	{ grep '^#' requirements.txt; cat build/run.txt; } > build/requirements.txt
	{ grep '^#' requirements-dev.txt; echo '-r requirements.txt'; \
	  LC_ALL=C sort build/run.txt > build/run.sorted; LC_ALL=C sort build/dev.txt | LC_ALL=C comm -13 build/run.sorted -; } \
	  > build/requirements-dev.txt
	mv build/requirements.txt build/requirements-dev.txt .

clean: ## remove what was built here, but not .venv
	rm -rf build outputs .pytest_cache .mypy_cache .ruff_cache
