# make demo: from nothing to a table and pictures.  make evidence: the numbers of docs/evidence.md.  make test: every check.
# make soak: kills and faults, by the hour.
# Needs Python >= 3.11 and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --no-deps
LOCKED := $(PIP) --only-binary :all: --require-hashes -r
DEMO := runs/demo
DEMOS := random-motion moco-motion dclr-motion random-scene moco-scene dclr-scene
ONE := OMP_NUM_THREADS=1 $(BIN)/python
TRAIN := $(ONE) train_pretrain.py --config recipes/lab.yaml --shards shards/demo
LINEAR := $(ONE) train_eval.py linear --shards shards/demo --train-split train --test-split test -cpv 2 --test-clips 2 --precision fp32

.PHONY: demo results evidence test fuzz soak clean
.SUFFIXES:

# torch is not in the locks: which build of it fits depends on the machine. What it needs beside GPU packages is.
$(VENV)/installed: requirements.txt requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is older than Python 3.11; name another with make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(LOCKED) requirements.lock
	$(PIP:--no-deps=) $$(grep -o '^torch==[0-9.]*' requirements.txt)
	$(PIP) --no-build-isolation -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed requirements-dev.lock
	$(LOCKED) requirements-dev.lock
	touch $@

test: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadscope  # most tests start processes of one thread: two at a time take half as long

# SHORT="--kills 10 --minutes 2", for example; an hour and a half without.
soak: $(VENV)/installed-dev
	$(BIN)/python -m pytest tests/faults -m "soak or not soak"
	PYTHONPATH=tests $(BIN)/python tests/faults/soak.py $(SHORT)

fuzz: $(VENV)/installed-dev  # RUNS=1000: so many executions of each target
	$(BIN)/python tests/fuzz/fuzz.py $(if $(RUNS),--runs $(RUNS))

evidence: $(VENV)/installed
	$(BIN)/python benchmarks/evidence.py $(CELL) $(if $(FRESH),--fresh)

shards/demo/manifest.json: | $(VENV)/installed
	$(BIN)/python -m preprocess synthetic --out shards/demo --size 40 --cues diff,flow,energy

# Each step is a file that it leaves: started again after it was killed, the demo goes on, and what is finished stays.
# Two networks train side by side with a thread each, which takes less time than one after the other with two threads.
demo: $(VENV)/installed $(DEMO)/sheet.png
	$(MAKE) --no-print-directory -j 2 results
	$(BIN)/python -m dclr.compare $(DEMOS:%=$(DEMO)/%)
	@echo "pictures: $(DEMO)/sheet.png $(DEMO)/dclr/maps.png $(DEMO)/dclr-motion/confusion.png"

results: $(DEMO)/moco/finished $(DEMO)/dclr/finished $(DEMOS:%=$(DEMO)/%/result.json)

$(DEMO)/sheet.png: | shards/demo/manifest.json
	$(BIN)/python -m preprocess preview shards/demo --out $@

$(DEMO)/moco/finished: | shards/demo/manifest.json
	$(TRAIN) $(shell sed -n 's/^MOCO = "\(.*\)"$$/\1/p' benchmarks/evidence.py) --out $(@D)
	touch $@

$(DEMO)/dclr/finished: | shards/demo/manifest.json
	$(TRAIN) --out $(@D)
	touch $@

$(DEMO)/random-%/result.json: | shards/demo/manifest.json
	$(LINEAR) --label $* --pretrained random -a r2plus1d_10 --width 8 --frames 8 --stride 1 --size 32 --features $(DEMO)/features --out $(@D)

$(DEMO)/moco-%/result.json: | $(DEMO)/moco/finished
	$(LINEAR) --label $* --pretrained $(DEMO)/moco/last.pt --features $(DEMO)/features --out $(@D)

$(DEMO)/dclr-%/result.json: | $(DEMO)/dclr/finished
	$(LINEAR) --label $* --pretrained $(DEMO)/dclr/last.pt --features $(DEMO)/features --out $(@D)

clean:  # not runs/ and shards/, which hold what took you hours
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
