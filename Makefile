# Targets for people and for CI. Each creates or updates .venv first; see CONTRIBUTING.md.
#   make test ARGS='tests/runtime -k tiles'     pass arguments to the program behind the target
#   make test ARGS='-n 0 --pdb'                 run the tests in one process
#   make test PYTHON=python3.12                 create .venv with another interpreter
#   make test CONSTRAINTS=/dev/null             install the newest releases instead of the pinned ones

PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
EXTRAS := train,export,rtx,openvino,geo,timm,tables,video,formats,supervision,track,triton,plots,cloud,ray,serve,docs,dev
ARGS ?=

TEST_TIME := 4 minutes on two otherwise idle cores (Intel Xeon, Emerald Rapids)

PY := .venv/bin/python
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help demo test check docs bench dist clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1	\2/p' Makefile | expand -t 16

demo: $(READY) ## generate data, train, evaluate, export and scan a large scene, in demo/
	$(PY) benchmarks/demo.py $(ARGS)

# Bytecode is kept: otherwise each worker and each process that a test starts compiles what it imports again.
test: $(READY) ## run the tests and doctests in parallel, without those marked slow
	@echo "The whole suite takes about $(TEST_TIME)."
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --maxprocesses 8 --dist worksteal $(ARGS)

check: $(READY) ## run ruff (lint and format) and mypy --strict
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy --strict tinydet

docs: $(READY) ## build the documentation site, in build/site/; --serve in ARGS shows it
	$(PY) docs/make_site.py $(ARGS)

bench: $(READY) ## run every benchmark that has --quick; list the others
	@for script in $$(grep -l '^if __name__ ==' $(filter-out benchmarks/demo.py,$(wildcard benchmarks/*.py))); do \
	  if grep -q '"--quick"' $$script; then echo "$(PY) $$script --quick"; $(PY) $$script --quick || exit 1; \
	  else echo "skipped, takes long: $(PY) $$script  # $$(sed -n '1s/"""//gp' $$script)"; fi; \
	done

dist: $(READY) ## build the sdist and from it the wheel, in dist/, and check both
	rm -rf dist
	$(PY) -m build --no-isolation
	$(PY) -m twine check --strict dist/*

clean: ## remove demo/, build products and caches, but not .venv
	rm -rf demo build dist *.egg-info .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +

# pip installs the pinned versions when .venv is missing or older than these files. The stamp is written last, so that
# an interrupted installation is resumed.
$(READY): pyproject.toml constraints.txt
	@echo "Preparing .venv for tinydet[$(EXTRAS)]: a new one takes minutes, because PyTorch and CUDA are several gigabytes."
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --disable-pip-version-check -c $(CONSTRAINTS) -e '.[$(EXTRAS)]'
	@touch $@
