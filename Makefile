# The commands of this project; `make` alone lists them. Only python3, pip, make and git are assumed.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python

define CHECK
import ctypes, sys
if not (3, 11) <= sys.version_info < (3, 13):
    sys.exit(f"setup: this is Python {sys.version.split()[0]}, qamoe needs 3.11 or 3.12: make setup PYTHON=python3.12")
absent = []
for library, package in (("libEGL.so.1", "libegl1"), ("libGLESv2.so.2", "libgles2"), ("libGL.so.1", "libgl1")):
    try:
        ctypes.CDLL(library)
    except OSError:
        absent.append((library, package))
if absent and sys.platform == "linux":
    libraries, packages = zip(*absent)
    sys.exit(f"setup: {', '.join(libraries)} not found; on Debian: apt-get install {' '.join(packages)}")
endef
export CHECK

.DEFAULT_GOAL := help
.PHONY: help setup check demo test test-all lint bench ui server worker deploy schedule stop experiment accept-tuned lock clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name text; do \
		printf '  make %-14s %s\n' "$$name" "$$text"; done

setup: $(VENV)/.installed ## the environment in .venv, of the versions of requirements.lock (PYTHON=python3.12 picks another Python)

check:
	@$(PYTHON) -c "$$CHECK"

# Repeated only when what it installs has changed. One pip command, so that torch is the lock's and no other.
$(VENV)/.installed: requirements.lock pyproject.toml
	@$(MAKE) --no-print-directory check
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[sample,dev]'
	@touch $@

demo: setup ## generated corpus -> features -> models -> spectrum report -> champion, about six minutes
	$(PY) -m flows.pipeline

test: setup ## the tests, without the slow ones
	$(PY) -m pytest -m "not slow and not real_data"

test-all: setup ## every test; those of research corpora are skipped where there is none
	$(PY) -m pytest

lint: setup ## ruff, the stack of packages and mypy
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(VENV)/bin/lint-imports --no-cache
	$(PY) -m mypy

bench: demo ## the figures of docs/performance.md anew, into benchmarks/results.jsonl, half an hour
	$(PY) benchmarks/all.py

ui server deploy worker schedule: export DO_NOT_TRACK := true

ui: setup ## runs, metrics and models in the browser: http://127.0.0.1:5000 (PORT=5001 picks another port)
	$(VENV)/bin/mlflow ui --host 127.0.0.1 --port $(or $(PORT),5000) \
		--backend-store-uri "$$($(PY) -c 'from qamoe.tracking import mlflow_store; print(mlflow_store.uri())')"

server worker deploy schedule: export PREFECT_API_URL ?= http://127.0.0.1:$(or $(PORT),4200)/api

server: setup ## Prefect's server, http://127.0.0.1:4200 (PORT=4201 picks another port, here and below); keep it running
	$(PY) scripts/services.py server --port $(or $(PORT),4200)

deploy: setup ## the deployments of prefect.yaml -> the server, for the worker
	$(VENV)/bin/prefect --no-prompt work-pool inspect qamoe >/dev/null 2>&1 \
		|| $(VENV)/bin/prefect --no-prompt work-pool create qamoe --type process
	$(VENV)/bin/prefect --no-prompt deploy --all

worker: setup ## runs what is deployed and due; keep it running
	$(PY) scripts/services.py worker

schedule: setup ## the deployments of prefect.yaml by one process, instead of deploy and worker; keep it running
	$(PY) scripts/services.py schedule

stop: setup ## ends schedule, worker and server, in this order
	$(PY) scripts/services.py stop

experiment: setup ## NAME=mosi: params.yaml overlaid by experiments/mosi.yaml, into artifacts-mosi/
	@test -n "$(NAME)" || { echo "experiment: which one? make experiment NAME=$$(ls experiments | sed -n '1s/\.yaml$$//p')" >&2; exit 2; }
	$(PY) -m qamoe.pipeline.experiment $(NAME)

accept-tuned: setup ## what the search found -> params.yaml, as a change to look at
	$(PY) scripts/accept_tuned.py
	git --no-pager diff -- params.yaml

lock: setup ## requirements.lock anew, from the environment there is
	{ sed -n '/^#/p' requirements.lock; $(PY) -m pip freeze --all --exclude pip --exclude-editable \
		| sed -n 's/^\([A-Za-z0-9._-]*==[^+ ]*\).*/\1/p' | LC_ALL=C sort -f; } > requirements.lock.new
	mv requirements.lock.new requirements.lock

clean: ## caches and artifacts; data, records, dvc's cache and .venv stay
	rm -rf artifacts artifacts-* .pytest_cache .mypy_cache .ruff_cache
	find src flows tests scripts benchmarks -name __pycache__ -prune -exec rm -rf {} +
