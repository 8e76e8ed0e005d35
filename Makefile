VENV ?= .venv
PYTHON ?= $(if $(wildcard $(VENV)/bin/python),$(VENV)/bin/python,python3)

ext:
	$(PYTHON) setup.py -q build_ext --inplace

.PHONY: ext
