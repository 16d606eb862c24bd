# make demo: from nothing to a table and pictures.  make test: every check.  Needs Python >= 3.11 and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO := runs/demo
DEMOS := random-motion dclr-motion random-scene dclr-scene
CLIPS := --size 56 --frames 16 --flip 0 --min-scale 0.6
LINEAR := $(BIN)/python train_eval.py linear --shards shards/demo --train-split train --test-split test --size 56 -cpv 2 --test-clips 2 --features $(DEMO)/features

.PHONY: demo test clean
.SUFFIXES:

$(VENV)/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is older than Python 3.11; name another with make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

test: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadscope  # most tests start processes of one thread: two at a time take half as long

shards/demo/manifest.json: | $(VENV)/installed
	$(BIN)/python -m preprocess synthetic --hard --out shards/demo --size 64

# Each step is a file that it leaves: started again after it was killed, the demo goes on, and what is finished stays.
demo: $(VENV)/installed $(DEMO)/sheet.png $(DEMOS:%=$(DEMO)/%/result.json)
	$(BIN)/python -m dclr.compare $(DEMO)/random-motion $(DEMO)/dclr-motion $(DEMO)/random-scene $(DEMO)/dclr-scene
	@echo "pictures: $(DEMO)/sheet.png $(DEMO)/dclr/maps.png $(DEMO)/dclr-motion/confusion.png"

$(DEMO)/sheet.png: | shards/demo/manifest.json
	$(BIN)/python -m preprocess preview shards/demo --out $@

$(DEMO)/dclr/finished: | shards/demo/manifest.json
	$(BIN)/python train_pretrain.py --shards shards/demo --split train --out $(DEMO)/dclr -a r2plus1d_10 --width 16 $(CLIPS) -b 16 --epochs 4 --lr 0.05 --schedule 2 3 --queue 256
	touch $@

$(DEMO)/random-%/result.json: | shards/demo/manifest.json
	$(LINEAR) --label $* --pretrained random -a r2plus1d_10 --width 16 --out $(@D)

$(DEMO)/dclr-%/result.json: | $(DEMO)/dclr/finished
	$(LINEAR) --label $* --pretrained $(DEMO)/dclr/last.pt --out $(@D)

clean:  # not runs/ and shards/, which hold what took you hours
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
