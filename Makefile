# Two stages around one file: VGG16 features once, classifiers as often as you like. `make help` tells all.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python -m
STAMP := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
PIP := -m pip install --disable-pip-version-check
BENCH := benchmarks/.venv
MARK := .made-by-make

# Only an environment that was made here is ever emptied or removed: it is marked before its first file is there, so
# that one whose making was interrupted is made anew. (Finished ones of earlier versions have the stamp alone.)
made_here = [ ! -L $1 ] && { [ -e $1/$(MARK) ] || [ -e $1/.installed ]; }

# A variable reaches its flag byte for byte, spaces, quotes and dollars included: it goes through the
# environment under another name, taken unexpanded, and the shell quotes it.
VARIABLES := DATASET DATA_DIR FEATURES_DIR IMAGE_SIZE WEIGHTS PRECISION TAPS LIMIT BATCH_SIZE THREADS \
  CLASSIFIER MODELS_DIR OUTPUT_DIR SEED C MAX_ITER TOL HIDDEN_LAYER_SIZES ALPHA LEARNING_RATE_INIT MAX_EPOCHS \
  PATIENCE FILE N_NEIGHBORS N_COMPONENTS GRID \
  FIT MODEL IMAGES TOP_K FORMAT OUTPUT SHEET
$(foreach name,$(VARIABLES),$(eval export MAKE_$(name) := $$(value $(name))))

flag = $(if $(value $1), --$2 "$$MAKE_$1")
FEATURE_FLAGS = $(call flag,DATASET,dataset)$(call flag,DATA_DIR,data-dir)$(call flag,FEATURES_DIR,features-dir)$(call \
  flag,IMAGE_SIZE,image-size)$(call flag,WEIGHTS,weights)$(call flag,PRECISION,precision)$(call \
  flag,TAPS,taps)$(call flag,LIMIT,limit)$(call flag,BATCH_SIZE,batch-size)$(call \
  flag,THREADS,threads)$(call flag,FIT,fit)$(if $(STRICT), --strict)$(if $(FOLLOW_LINKS), --follow-links)
TRAIN_FLAGS = $(call flag,CLASSIFIER,classifier)$(call flag,MODELS_DIR,models-dir)$(call \
  flag,OUTPUT_DIR,output-dir)$(call flag,SEED,seed)$(if $(FORCE), --force)$(call flag,C,C)$(call \
  flag,MAX_ITER,max-iter)$(call flag,TOL,tol)$(call flag,HIDDEN_LAYER_SIZES,hidden-layer-sizes)$(call \
  flag,ALPHA,alpha)$(call flag,LEARNING_RATE_INIT,learning-rate-init)$(call flag,MAX_EPOCHS,max-epochs)$(call \
  flag,PATIENCE,patience)$(call flag,N_NEIGHBORS,n-neighbors)$(call flag,N_COMPONENTS,n-components)
SWEEP_FLAGS = $(call flag,GRID,grid)$(call flag,FILE,file)$(if $(YES), --yes)$(if $(NO_HALVING), --no-halving)
REPORT_FLAGS = $(call flag,DATASET,dataset)$(call flag,DATA_DIR,data-dir)$(call flag,OUTPUT_DIR,output-dir)

PREDICT_FLAGS = $(call flag,TOP_K,top-k)$(call flag,FORMAT,format)$(call flag,OUTPUT,output)$(call \
  flag,SHEET,sheet)$(call flag,DATA_DIR,data-dir)$(call flag,WEIGHTS,weights)$(call \
  flag,BATCH_SIZE,batch-size)$(if $(STRICT), --strict)$(if $(FOLLOW_LINKS), --follow-links)

.PHONY: help install demo features train sweep report predict export inspect test torture bench check format lock \
  clean clean-features

help: ## show this list
	@echo "Usage: make TARGET [VARIABLE=value …]"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "Variables of demo, features, train and sweep, each the flag of the same name:"
	@echo "  DATASET DATA_DIR FEATURES_DIR IMAGE_SIZE WEIGHTS PRECISION TAPS LIMIT BATCH_SIZE THREADS"
	@echo "  FIT STRICT=1 FOLLOW_LINKS=1"
	@echo "Variables of demo, train and sweep besides:"
	@echo "  CLASSIFIER MODELS_DIR OUTPUT_DIR SEED FORCE=1, of logistic C MAX_ITER TOL, of mlp"
	@echo "  HIDDEN_LAYER_SIZES ALPHA LEARNING_RATE_INIT MAX_EPOCHS PATIENCE, of svm ALPHA MAX_EPOCHS PATIENCE,"
	@echo "  of ridge ALPHA, of knn N_NEIGHBORS N_COMPONENTS; of sweep GRID FILE YES=1 NO_HALVING=1"
	@echo "Variables of predict: MODEL, IMAGES (an image or a folder), and TOP_K FORMAT OUTPUT SHEET DATA_DIR"
	@echo "  WEIGHTS BATCH_SIZE STRICT=1 FOLLOW_LINKS=1"
	@echo "PYTHON is the Python that makes $(VENV) (python3). 'make train IMAGE_SIZE=32 TAPS=top', for example."

install: $(STAMP) ## make .venv from requirements.txt (every target does so by itself)

$(BENCH)/.installed: benchmarks/requirements.txt

# One recipe for both. Each file by itself: hashes in one would be asked of all.
$(STAMP) $(BENCH)/.installed: requirements.txt
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "error: there is no '$(PYTHON)' here. Install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3" >&2; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $(PYTHON) is $$("$(PYTHON)" --version 2>&1), but 3.11 or newer is needed. Name another: make PYTHON=python3.11" >&2; exit 2; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "error: $(PYTHON) has no venv module. Install it (Debian and Ubuntu: apt install python3-venv), or name another Python: make PYTHON=/path/to/python3" >&2; exit 2; }
	@if { [ -L $(@D) ] || [ -e $(@D) ]; } && ! { $(call made_here,$(@D)); } && ! rmdir $(@D) 2>/dev/null; then \
	  echo "error: $(@D) is a link, or an environment that this Makefile did not make, so it is left as it is. Rename or remove it ('rm $(@D)' removes a link, not what is behind it) and run make again. To use it instead, install into it with '$(@D)/bin/python -m pip install -r $(@D:.venv=requirements.txt)' and run '$(@D)/bin/python -m pipeline' instead of make." >&2; exit 2; fi
	@echo "making $(@D) from $(@D:.venv=requirements.txt) (about 2.5 GB on disk, a few minutes on a first run)" >&2
	@mkdir -p $(@D) && touch $(@D)/$(MARK) && find $(@D) -mindepth 1 ! -path $(@D)/$(MARK) -delete
	@"$(PYTHON)" -m venv $(@D)
	@$(foreach file,$^,$(@D)/bin/python $(PIP) -r $(file) &&) touch $@

# What only checks the product joins it there, for the targets that need it.
$(DEV): requirements-dev.txt $(STAMP)
	@$(VENV)/bin/python $(PIP) -r $<
	@touch $@

demo: $(STAMP) ## both stages on scikit-learn's digits, in about a minute
	@$(RUN) pipeline demo$(FEATURE_FLAGS)$(TRAIN_FLAGS)

features: $(STAMP) ## stage one: push all images through VGG16 once, into features/
	@$(RUN) pipeline features$(FEATURE_FLAGS)

train: $(STAMP) ## stage two: train a classifier on the features (makes them when missing)
	@$(RUN) pipeline features$(FEATURE_FLAGS)
	@$(RUN) pipeline train$(FEATURE_FLAGS)$(TRAIN_FLAGS)

sweep: $(STAMP) ## stage two, many times: compare candidates on validation, train the best (FILE=experiments.toml)
	@$(RUN) pipeline features$(FEATURE_FLAGS)
	@$(RUN) pipeline sweep$(FEATURE_FLAGS)$(TRAIN_FLAGS)$(SWEEP_FLAGS)

report: $(STAMP) ## rebuild output/leaderboard.csv and output/index.html from the runs that are there
	@$(RUN) pipeline report$(REPORT_FLAGS)

predict: $(STAMP) ## classify images of your own: make predict MODEL=models/RUN.joblib IMAGES=folder
	@$(if $(and $(value MODEL),$(value IMAGES)),,echo "error: name a model and images: make predict MODEL=models/RUN.joblib IMAGES=folder" >&2; exit 2;) \
	$(RUN) pipeline predict --model "$$MAKE_MODEL"$(PREDICT_FLAGS) -- "$$MAKE_IMAGES"

export: $(STAMP) ## write a model in the format for sharing (skops): make export MODEL=models/RUN.joblib
	@$(if $(value MODEL),,echo "error: name a model: make export MODEL=models/RUN.joblib" >&2; exit 2;) \
	$(RUN) pipeline export --model "$$MAKE_MODEL"

inspect: $(STAMP) ## tell what a feature file holds and whether it verifies: make inspect FILE=features/….h5
	@$(if $(value FILE),,echo "error: name a feature file: make inspect FILE=features/NAME.h5" >&2; exit 2;) \
	$(RUN) pipeline inspect "$$MAKE_FILE"$(FEATURE_FLAGS)

test: $(DEV) ## run the tests; those on real data need DATA_DIR=folder
	@DATA_DIR="$$MAKE_DATA_DIR" $(RUN) pytest

torture: $(DEV) ## attack the cache for half an hour: kills, full disks, flipped bits
	@$(VENV)/bin/python tests/torture.py

bench: $(BENCH)/.installed ## set stage one against other tools, into docs/ (half an hour; QUICK=1: minutes)
	@$(BENCH)/bin/python benchmarks/bench.py$(call flag,DATA_DIR,data-dir)$(if $(QUICK), --quick)

check: $(DEV) ## lint and type-check (ruff, mypy strict)
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .
	@$(RUN) mypy

format: $(DEV) ## format the code and mend what ruff can
	@$(RUN) ruff format .
	@$(RUN) ruff check --fix .

# Pins that still satisfy pyproject.toml stay; delete a file first to renew all of its pins.
lock: ## pin what pyproject.toml asks for, and what that needs, in the requirements files
	@tools=$$(mktemp -d) && trap 'rm -rf "$$tools"' EXIT && "$(PYTHON)" -m venv "$$tools" && \
	"$$tools/bin/python" $(PIP) --quiet uv && \
	lock() { "$$tools/bin/uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	  --custom-compile-command "make lock" pyproject.toml "$$@"; } && \
	lock -o requirements.txt && lock --extra dev -c requirements.txt -o requirements-dev.txt

clean: ## remove .venv and tools' caches, never data, features, models or output
	@for venv in $(VENV) $(BENCH); do \
	  if $(call made_here,$$venv); then rm -rf $$venv; \
	  elif [ -L $$venv ] || [ -e $$venv ]; then echo "$$venv was not made by make: it is left as it is" >&2; fi; done
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

clean-features: ## remove the feature caches (they can be computed again)
	cd "$${MAKE_FEATURES_DIR:-features}" && rm -rf -- *-vgg16-*px-*.h5 *-vgg16-*px-*.parts *-vgg16-*px-*.lock
