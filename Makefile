# Two commands on a fresh machine with Python 3.11: `make demo` and `make test`. `make demo DEMO='train.steps=100'` passes overrides.
PYTHON ?= python3
VENV ?= .venv
MADS ?= $(VENV)/bin/mads
INSTALLED ?= $(VENV)/installed
DEMO ?=
FULL ?=
TEST ?=
HERE := $(dir $(lastword $(MAKEFILE_LIST)))

.PHONY: demo test test-full mutants clean

$(VENV)/installed: pyproject.toml constraints/cpu.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --disable-pip-version-check --progress-bar off -c constraints/cpu.txt -e '.[test]'
	touch $@

demo: $(INSTALLED)
	bash $(HERE)launch/demo.sh $(MADS) $(DEMO)

# Two pytest processes: the distributed tests beside all others. TEST='-k words' passes options to both.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(VENV)/bin/python tests/side_by_side.py $(TEST)

# Everything exhaustive, for hours; may be stopped and goes on where it was. FULL='--suite NAME --limit 20' passes options.
test-full: $(INSTALLED)
	$(VENV)/bin/python tests/full/run.py $(FULL)

mutants: $(INSTALLED)
	$(VENV)/bin/python tests/full/run.py --suite mutant_runs

clean:
	rm -rf $(VENV) build runs data .cache
