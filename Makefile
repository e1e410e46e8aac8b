# Targets for people and for CI. Each makes or renews .venv first; see CONTRIBUTING.md.
#   make test ARGS='tests/runtime -k tiles'     ARGS goes to the program behind the target
#   make test PYTHON=python3.12                 the interpreter that a new .venv is made with
#   make test CONSTRAINTS=/dev/null             the newest releases instead of the pinned ones

PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
EXTRAS := train,export,rtx,openvino,geo,tables,video,formats,supervision,plots,dev
ARGS ?=

PY := .venv/bin/python
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help demo test check bench clean

help: ## what there is to make
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1	\2/p' Makefile | expand -t 16

demo: $(READY) ## data, S-alpha, training, evaluation, ONNX, engine, a large scene and its picture, in demo/
	$(PY) benchmarks/demo.py $(ARGS)

test: $(READY) ## the tests and doctests, without those marked slow
	OMP_NUM_THREADS=2 $(PY) -m pytest $(ARGS)

check: $(READY) ## ruff (lint and layout) and mypy --strict
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy --strict tinydet

bench: $(READY) ## run each benchmark that has a --quick run; name the others
	@for script in $$(grep -l '^if __name__ ==' $(filter-out benchmarks/demo.py,$(wildcard benchmarks/*.py))); do \
	  if grep -q '"--quick"' $$script; then echo "$(PY) $$script --quick"; $(PY) $$script --quick || exit 1; \
	  else echo "not run, for it takes long: $(PY) $$script  # $$(sed -n '1s/"""//gp' $$script)"; fi; \
	done

clean: ## remove what was made here (demo/, build products, caches), except .venv
	rm -rf demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +

# Missing or older than what it was made from: pip brings it to the pinned versions. The stamp is written last, so an
# interrupted installation is taken up again.
$(READY): pyproject.toml constraints.txt
	@echo "Preparing .venv for tinydet[$(EXTRAS)]: a new one takes minutes, for PyTorch and CUDA are several gigabytes."
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --disable-pip-version-check -c $(CONSTRAINTS) -e '.[$(EXTRAS)]'
	@touch $@
