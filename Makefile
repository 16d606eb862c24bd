# make demo: from nothing to a table and pictures.  make test: every check.  Needs Python >= 3.11 and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO := runs/demo
CLIPS := --size 56 --frames 16 --flip 0 --min-scale 0.6

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
	$(BIN)/python -m preprocess synthetic --out shards/demo --size 64

demo: $(VENV)/installed shards/demo/manifest.json
	rm -rf $(DEMO)
	$(BIN)/python -m preprocess preview shards/demo --out $(DEMO)/sheet.png
	$(BIN)/python train_pretrain.py --shards shards/demo --split train --out $(DEMO)/dclr -a r2plus1d_10 --width 16 $(CLIPS) -b 16 --epochs 4 --lr 0.05 --schedule 2 3 --queue 256
	for label in motion scene; do \
	  for from in random dclr; do \
	    if [ $$from = random ]; then weights="random -a r2plus1d_10 --width 16"; else weights="$(DEMO)/dclr/last.pt"; fi; \
	    $(BIN)/python train_eval.py linear --shards shards/demo --train-split train --test-split test --label $$label --pretrained $$weights --size 56 -cpv 2 --test-clips 2 --features $(DEMO)/features --out $(DEMO)/$$from-$$label || exit $$?; \
	  done; \
	done
	$(BIN)/python -m dclr.compare $(DEMO)/random-motion $(DEMO)/dclr-motion $(DEMO)/random-scene $(DEMO)/dclr-scene
	@echo "pictures: $(DEMO)/sheet.png $(DEMO)/dclr/maps.png $(DEMO)/dclr-motion/confusion.png"

clean:
	rm -rf $(VENV) runs shards/demo
