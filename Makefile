# One environment for everything: .venv/, changed only when what it is made from changes. The demo needs the package and
# the data; tests, docs and checks add the rest to the same environment.
PYTHON ?= python3
BIN := .venv/bin
CORE := .venv/.core
STAMP := .venv/.ready

.PHONY: demo test lint types docs benchmarks campaigns clean

demo: $(CORE)  ## the main job: two sensors of one room teach each other, with report and exported student
	$(BIN)/mfh demo

test: $(STAMP)  ## the whole test suite
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# torch goes first and exactly pinned: an open range would pull several GB of accelerator packages.
$(CORE): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "mfh needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version). Try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[data]'
	touch $@

$(STAMP): $(CORE)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all]'
	touch $@

campaigns: $(STAMP)  ## the long forms of the campaigns on run folders; the tests run short ones
	$(BIN)/python benchmarks/campaigns/kills.py --kills 200
	$(BIN)/python benchmarks/campaigns/damage.py --damages 500 --processes 2
	$(BIN)/python benchmarks/campaigns/writers.py --pairs 60

clean:
	rm -rf .venv site runs .mypy_cache .ruff_cache .pytest_cache
