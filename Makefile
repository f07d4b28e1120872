# The commands of this project; `make` alone lists them. Needs only python3, pip, make and git.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python

define PREFLIGHT
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
export PREFLIGHT

# pip would repeat a warning for minutes.
define REACHES_PYTORCH
import sys, urllib.request
try:
    urllib.request.urlopen("https://download.pytorch.org/whl/cpu/", timeout=20).close()
except OSError as error:
    sys.exit(f"setup: https://download.pytorch.org/whl/cpu cannot be read ({error}); leave out TORCH=cpu, or name a mirror"
             " of it in PIP_EXTRA_INDEX_URL instead")
endef
export REACHES_PYTORCH

.DEFAULT_GOAL := help
.PHONY: help setup preflight demo check test test-all lint bench docs ui server worker deploy schedule stop lock clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name text; do \
		printf '  make %-14s %s\n' "$$name" "$$text"; done

setup: $(VENV)/.weights ## install everything into .venv, about 4 minutes (TORCH=cpu: PyTorch without CUDA; PYTHON=python3.12)

preflight: ## check the Python version and the system libraries that pip cannot install
	@$(PYTHON) -c "$$PREFLIGHT"

# Repeated only when what it installs has changed. One pip command, so that torch is the version of the lock. PyPI's torch
# for Linux carries CUDA (6.3 GB in all); PyTorch's own index has one without (2.9 GB in all).
$(VENV)/.installed: export PIP_EXTRA_INDEX_URL := $(if $(filter cpu,$(TORCH)),https://download.pytorch.org/whl/cpu,$(PIP_EXTRA_INDEX_URL))
$(VENV)/.installed: requirements.lock pyproject.toml
	@$(MAKE) --no-print-directory preflight
	@test "$(TORCH)" != cpu || $(PYTHON) -c "$$REACHES_PYTORCH"
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "setup: installing $$(grep -c == requirements.lock) packages into $(VENV): about 4 minutes on a fast network"
	@test -n "$(TORCH)" || command -v nvidia-smi >/dev/null \
		|| echo "setup: no GPU found; make setup TORCH=cpu takes PyTorch without CUDA, 2.9 GB instead of 6.3 GB"
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[sample,speech,dev]'
	@echo "setup: installed, $$(du -sh $(VENV) | cut -f1) in $(VENV)"
	@touch $@

# The pretrained weights that params.yaml names. The file stays absent where a source fails, so each make tries again.
$(VENV)/.weights: $(VENV)/.installed params.yaml
	@rm -f $@
	@if $(PY) -m qamoe weights fetch; then touch $@; echo "setup: done; next: make demo"; \
		else echo "setup: done without these weights; make demo runs the overlay offline, which needs none of them"; fi

demo: setup ## sample corpus -> features -> models -> spectrum report -> champion, about 6 minutes on two cores
	$(PY) -m flows.pipeline $$(test -e $(VENV)/.weights || echo experiment=offline)

check: setup ## lint, types and the unit tests that start no process, within a minute
	@$(PY) scripts/check.py

# Tests run side by side, so each uses one thread. One more than there are cores, because tests also wait for the disk.
check test test-all: export OMP_NUM_THREADS := 1

test: setup ## the tests except the slow ones, about 4 minutes on two cores
	$(PY) -m pytest --numprocesses $$(($$(nproc) + 1)) --no-loadscope-reorder -m "not slow and not real_data"

test-all: setup ## all tests, about an hour; those of research corpora are skipped where the corpora are missing
	$(PY) -m pytest --numprocesses $$(nproc) --no-loadscope-reorder

lint: setup ## ruff, the import order of the packages, mypy
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(VENV)/bin/lint-imports --no-cache
	$(PY) -m mypy

bench: demo ## measure the figures of docs/performance.md, into benchmarks/results.jsonl, half an hour
	$(PY) benchmarks/all.py

docs: setup ## rewrite README's output and the command reference from the last demo, build the site into site/
	$(PY) -m scripts.docs

ui server deploy worker schedule: export DO_NOT_TRACK := true

ui: setup ## MLflow with runs, metrics and models on port 5000; prints the address of the runs (another port: make ui PORT=5001)
	$(PY) -m scripts.ui --port $(or $(PORT),5000)

server worker deploy schedule: export PREFECT_API_URL ?= http://127.0.0.1:$(or $(PORT),4200)/api

server: setup ## Prefect's server, http://127.0.0.1:4200; keep it running (PORT=4201 for another port: here, deploy, worker, schedule)
	$(PY) scripts/services.py server --port $(or $(PORT),4200)

deploy: setup ## create the deployments of prefect.yaml on the server
	$(VENV)/bin/prefect --no-prompt work-pool inspect qamoe >/dev/null 2>&1 \
		|| $(VENV)/bin/prefect --no-prompt work-pool create qamoe --type process
	$(VENV)/bin/prefect --no-prompt deploy --all

worker: setup ## run deployed flows when they are due; keep it running
	$(PY) scripts/services.py worker

schedule: setup ## deploy and worker in one process; keep it running
	$(PY) scripts/services.py schedule

stop: setup ## end schedule, worker and server
	$(PY) scripts/services.py stop

lock: setup ## write requirements.lock from the installed packages
	{ sed -n '/^#/p' requirements.lock; $(PY) -m pip freeze --all --exclude pip --exclude-editable \
		| sed -n 's/^\([A-Za-z0-9._-]*==[^+ ]*\).*/\1/p' | LC_ALL=C sort -f; } > requirements.lock.new
	mv requirements.lock.new requirements.lock

clean: ## remove artifacts, the built site and caches; data, records, DVC's cache and .venv stay
	git clean -fdXq artifacts  # what git tracks in it stays
	rm -rf artifacts-* site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src flows tests scripts benchmarks -name __pycache__ -prune -exec rm -rf {} +
