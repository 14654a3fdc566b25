# Two stages around one file: VGG16 features once, classifiers as often as you like. `make help` tells all.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
VENV := .venv
RUN = PIPELINE_VARIABLES="$(GIVEN)" $(VENV)/bin/python -m pipeline
STAMP := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
DOCS := $(VENV)/.installed-docs
AUDIT := $(VENV)/.installed-audit
CLUSTERED := $(VENV)/.installed-cluster
INDEXED := $(VENV)/.installed-index
PIP := -m pip install --disable-pip-version-check
BENCH := benchmarks/.venv
MARK := .made-by-make

# Only an environment that was made here is ever emptied or removed: it is marked before its first file is there, so
# that one whose making was interrupted is made anew. (Finished ones of earlier versions have the stamp alone.)
made_here = [ ! -L $1 ] && { [ -e $1/$(MARK) ] || [ -e $1/.installed ]; }

# A variable given to make is the default of the flag of the same name, byte for byte: it goes through the environment
# under another name, unexpanded, with the list of those given, so that nothing else of the environment becomes a flag.
GIVEN := $(sort $(foreach name,$(filter-out PYTHON QUICK BEFORE,$(.VARIABLES)),$(if $(filter command,$(firstword $(origin $(name)))),$(name))))
$(foreach name,$(GIVEN),$(eval export PIPELINE_$(name) := $$(value $(name)))$(eval unexport $(name)))
given = $(if $(filter $1,$(GIVEN)),$(if $(value $1),"$$PIPELINE_$1"))

.PHONY: help install index demo features train sweep ensemble report predict audit similar export inspect test docs \
  torture bench bench-train grid check format lock clean clean-features

help: ## show this list
	@echo "Usage: make TARGET [VARIABLE=value …]"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "A variable is a flag of the command: --image-size 32 is IMAGE_SIZE=32, --strict is STRICT=1, and values of a flag"
	@echo "that may be given more than once stand side by side, as in 'make sweep TAPS=\"top all\"'. The flags are listed by"
	@echo "'$(VENV)/bin/python -m pipeline train --help' and in docs/command-line.md. PYTHON is the Python that makes $(VENV) (python3)."

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

# What few targets need joins it there when they are made.
$(DEV) $(DOCS) $(AUDIT) $(CLUSTERED) $(INDEXED): $(VENV)/.installed-%: requirements-%.txt $(STAMP)
	@$(VENV)/bin/python $(PIP) -r $<
	@touch $@

demo: $(STAMP) ## both stages on scikit-learn's digits, in about a minute
features: $(STAMP) ## stage one: push all images through VGG16 once, into features/
train: $(STAMP) ## stage two: train a classifier on the features (makes them when missing)
sweep: $(STAMP) ## stage two, many times: compare candidates on validation, train the best (FILE=experiments.toml)
ensemble: $(STAMP) ## join runs into one, weighed on validation: make ensemble RUNS="RUN RUN"
report: $(STAMP) ## rebuild output/leaderboard.csv and output/index.html from the runs that are there
predict: $(STAMP) ## classify images of your own: make predict MODEL=models/RUN.joblib IMAGES=folder
audit: $(AUDIT) ## look for wrong labels, near duplicates, outliers and dull images (DATASET=folder)
similar: $(STAMP) ## find what is most like an image of your own: make similar IMAGES=cat.jpg
index: $(INDEXED) ## install faiss, by which similar searches more than a million rows
export: $(STAMP) ## write a model in the format for sharing (skops): make export MODEL=models/RUN.joblib
inspect: $(STAMP) ## tell what a feature file holds and whether it verifies: make inspect FILE=features/….h5

demo features train sweep: $(if $(filter CLUSTER,$(GIVEN)),$(CLUSTERED))

demo features ensemble report predict similar export inspect:
	@$(RUN) $@

train sweep audit:
	@$(RUN) features
	@$(RUN) $@

test: $(DEV) ## run the tests; those on real data need DATA_DIR=folder
	@$(RUN) --help >/dev/null
	@$(addprefix DATA_DIR=,$(call given,DATA_DIR)) $(VENV)/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

docs: $(DOCS) ## build the documentation in docs/_build/html, running its examples (weights: DATA_DIR=folder)
	@$(RUN) --help >/dev/null
	@$(addprefix DATA_DIR=,$(call given,DATA_DIR)) $(VENV)/bin/python -m sphinx -W --keep-going docs docs/_build/html

torture: $(DEV) ## attack the cache for half an hour: kills, full disks, flipped bits
	@$(VENV)/bin/python tests/torture.py

bench: $(BENCH)/.installed ## set stage one against other tools, into docs/ (half an hour; QUICK=1: minutes)
	@$(subst $(VENV),$(BENCH),$(RUN)) --help >/dev/null
	@$(BENCH)/bin/python benchmarks/bench.py$(addprefix $() --data-dir ,$(call given,DATA_DIR))$(if $(QUICK), --quick)

bench-train: $(STAMP) ## time stage two on the caches of CIFAR-10 at 32 and 64 px (an hour; BEFORE=COMMIT: against it)
	@$(VENV)/bin/python benchmarks/stage_two.py compare $(or $(call given,FEATURES_DIR),features) \
	  $(addprefix --data-dir ,$(call given,DATA_DIR)) $(addprefix --before ,$(BEFORE))

grid: $(STAMP) ## measure sizes, views, taps and classifiers on CIFAR-10, into docs/accuracy.md (hours; goes on where it stopped)
	@$(RUN) --help >/dev/null
	@$(VENV)/bin/python benchmarks/accuracy.py $(addprefix --data-dir ,$(call given,DATA_DIR)) \
	  $(addprefix --features-dir ,$(call given,FEATURES_DIR))

check: $(DEV) ## lint and type-check (ruff, mypy strict)
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy

format: $(DEV) ## format the code and repair what ruff can
	@$(VENV)/bin/ruff format .
	@$(VENV)/bin/ruff check --fix .

# Pins that still satisfy pyproject.toml stay; delete a file first to renew all of its pins.
lock: ## pin what pyproject.toml asks for, and what that needs, in the requirements files
	@tools=$$(mktemp -d) && trap 'rm -rf "$$tools"' EXIT && "$(PYTHON)" -m venv "$$tools" && \
	"$$tools/bin/python" $(PIP) --quiet uv && \
	lock() { "$$tools/bin/uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	  --custom-compile-command "make lock" pyproject.toml "$$@"; } && \
	lock -o requirements.txt && \
	for extra in dev docs audit cluster index; do lock --extra $$extra -c requirements.txt -o requirements-$$extra.txt || exit; done

clean: ## remove .venv and tools' caches, never data, features, models or output
	@for venv in $(VENV) $(BENCH); do \
	  if $(call made_here,$$venv); then rm -rf $$venv; \
	  elif [ -L $$venv ] || [ -e $$venv ]; then echo "$$venv was not made by make: it is left as it is" >&2; fi; done
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis docs/_build docs/auto_examples
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

clean-features: ## remove the feature caches (they can be computed again)
	cd $(or $(call given,FEATURES_DIR),features) && rm -rf -- *-vgg16-*px-*.h5 *-vgg16-*px-*.parts *-vgg16-*px-*.lock *-vgg16-*px-*.index
