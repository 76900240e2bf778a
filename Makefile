# make run      a virtual environment, the packages, and the page at http://127.0.0.1:7860
# make test     the same with what tests need, then all tests
# make install  only the environment and the packages
# make coverage all tests, and how many lines and branches they reach; htmlcov/ shows them
# make check    style, types, import rules, dead code
# make protobuf the tests that depend on protobuf, under six versions of it
# make faults   everything that can go wrong, on purpose, a few times each; ARGS=--full as often as reported; --record tells it
# make mutation whether the tests of geometry and sampling notice small changes
# make audit    known vulnerabilities of the installed packages
# make docs     the documents and the reference of the code as a site, in site/
# make space    the folder of the Hugging Face Space, in build/space; ARGS="--upload OWNER/NAME" publishes it
# make drawings the drawings in docs/, anew from the code
# make clean    throws the environment away
#
# PYTHON=/path/to/python3.11 chooses the interpreter, VENV=dir the environment, ARGS="..." goes to the program called.

VENV ?= .venv
PYTHON ?=
ARGS ?=
# Test files in as many processes as there are cores, at most four: each takes a gigabyte. ARGS=-n0: one after the other.
SIDE_BY_SIDE := --numprocesses auto --maxprocesses 4 --dist loadfile
BIN := $(VENV)/bin

.PHONY: run test install coverage check protobuf faults mutation audit docs space drawings clean help
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# \{0,1\}//; 1,/^$$/p' Makefile

run: $(VENV)/.installed
	$(BIN)/python app.py $(ARGS)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) $(ARGS)

install: $(VENV)/.installed

coverage: $(VENV)/.installed-dev
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run -m pytest $(ARGS)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage html --quiet
	$(BIN)/python -m coverage report

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/vulture

protobuf: $(VENV)/.installed-dev
	$(BIN)/python -m scripts.checks.protobuf $(ARGS)

faults: $(VENV)/.installed-health
	$(BIN)/python -m scripts.faults $(ARGS)

mutation: $(VENV)/.installed-health
	$(BIN)/python scripts/checks/mutation.py $(ARGS)

audit: $(VENV)/.installed-health
	$(BIN)/python scripts/checks/audit.py $(ARGS)

docs: $(VENV)/.installed-docs
	$(BIN)/python scripts/docs/build_site.py $(ARGS)

space: $(VENV)/.installed
	$(BIN)/python scripts/build_space.py $(ARGS)

drawings: $(VENV)/.installed
	for script in scripts/docs/draw_*.py; do $(BIN)/python $$script || exit 1; done

clean:
	rm -rf $(VENV)

# The stamps are newer than the requirements they were made from, so that a second call installs nothing.
$(BIN)/python:
	@found=$$(sh scripts/find-python $(PYTHON)) && echo "Python: $$found" && "$$found" -m venv $(VENV) || \
	    { rm -rf $(VENV); echo "No virtual environment was made. On Debian and Ubuntu it also takes: apt install python3-venv" >&2; exit 1; }

$(VENV)/.installed: requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt scripts/checks/protobuf.py $(VENV)/.installed
	$(BIN)/python -m pip install -r requirements-dev.txt
	$(BIN)/python -m scripts.checks.protobuf --install
	@touch $@

$(VENV)/.installed-health: requirements-health.txt $(VENV)/.installed-dev
	$(BIN)/python -m pip install -r requirements-health.txt
	@touch $@

$(VENV)/.installed-docs: requirements-docs.txt | $(BIN)/python
	$(BIN)/python -m pip install -r requirements-docs.txt
	@touch $@
