# `make help` lists the targets. Every target but help and clean sets the environment up first.

PRESET ?= tiny
TRAINER ?=
DATA ?=
ARGS ?=
PYTHON ?=
CASES ?= tests/data/parity
N ?= 20
SEED ?= 0
REAL_PARTS ?= .cache/real_parts
LAYERS ?= 2

export PIP_DISABLE_PIP_VERSION_CHECK = 1
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash

STAMP := .venv/.set-up
BESIDE := .venv/beside/.set-up
STACK := .venv-stack/.set-up
LOWEST := .venv-lowest/.set-up
# -P: no file of the current folder is in the place of a module
RUN := .venv/bin/python -P -m triptych
STAGES := train-encoder train-decoder train-stage1 train-stage2 train-stage3 train-edits train-reconstruct train-joint train-rl train-preferences
# Without a GPU two processes train the tiny preset nearly twice as fast as one with two threads; the
# loss of the encoder compares the samples of one process.
ifneq ($(PRESET)$(wildcard /dev/nvidia0),tiny)
  HARDWARE = $(TRAINER)
else
  HARDWARE = $(or $(TRAINER),$(if $(filter train-encoder train-decoder,$@),,cpu))
endif
CODE := src callbacks data_modules tests benchmarks conftest.py

# Bad input stops make here, before the environment is set up; that of a training, triptych itself.
ifneq ($(filter parity,$(MAKECMDGOALS)),)
  ifneq ($(shell [ -d "$(CASES)" ] && echo yes),yes)
    $(error the CASES folder '$(CASES)' does not exist)
  endif
endif
ifneq ($(filter rehearse,$(MAKECMDGOALS)),)
  ifneq ($(shell [[ "$(LAYERS)" =~ ^[1-9][0-9]*$$ ]] && echo yes),yes)
    $(error LAYERS is '$(LAYERS)': give a whole number of 1 or more)
  endif
  ifneq ($(shell [ -f "conf/presets/$(PRESET).yaml" ] && echo yes),yes)
    $(error the preset '$(PRESET)' is unknown: choose a file of conf/presets)
  endif
endif

.PHONY: help setup $(STAGES) demo app pretrain-tiny parity bench bench-data bench-generate bench-rl bench-serve rehearse gpu-check attack torture study real-parts verify-real test test-slow test-sweep test-portable test-stack test-lowest lint docs audit clean

help: ## Show this help
	@grep -hE '^[a-z0-9-]+:.*## ' $(firstword $(MAKEFILE_LIST)) \
		| awk -F':.*## ' '{printf "  %-17s %s\n", $$1, $$2}'
	@echo
	@echo '  PRESET=tiny       the model: a file of conf/presets'
	@echo '  TRAINER=ddp       on several devices: a file of conf/trainer'
	@echo '  DATA=FOLDER       train on a folder of WebDataset shards instead of the shapes world'
	@echo '  CASES=FOLDER      recorded cases for parity, a folder each (tests/data/parity)'
	@echo '  LAYERS=2          blocks of each network in a rehearsal'
	@echo '  N=20              runs that torture kills'
	@echo '  SEED=0            of the moments in which torture kills'
	@echo '  REAL_PARTS=FOLDER where real-parts puts what verify-real reads (.cache/real_parts)'
	@echo '  ARGS="--a=1 --b"  passed on last, so they win; ARGS="--help" and ARGS="--print_config" too'
	@echo '  PYTHON=python3.12 the Python that makes .venv'

setup: $(STAMP) ## Create .venv and install everything into it

# The stamp is written last: an interrupted set-up is taken up again by the next make.
$(STAMP): setup.cfg constraints.txt pyproject.toml
	@set -e; python='$(PYTHON)'; \
	if [ -z "$$python" ]; then for one in python3.11 python3 python3.12 python3.13; do \
		if $$one -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
		then python=$$one; break; fi; done; fi; \
	if ! $${python:-false} -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
		echo "set-up needs Python 3.11 or newer; install it, or name it: make setup PYTHON=FILE" >&2; \
		exit 2; fi; \
	if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then \
		$$python -m venv --clear .venv || { \
			echo "$$python cannot make .venv; its venv module may be a package of its own" >&2; \
			exit 1; }; fi; \
	echo "set-up: installing into .venv; the first time takes minutes and shows nothing"; \
	.venv/bin/python -m pip install -qq --no-input --require-hashes --only-binary :all: \
		-r constraints.txt; \
	.venv/bin/python -m pip install -qq --no-input --no-deps --no-build-isolation -e .
	@touch $@

train-encoder: ## Train the image encoder and the VAE from scratch
train-decoder: ## Train the pixel decoder: features to pixels
train-stage1: ## Train understanding: the language model reads images and captions
train-stage2: ## Train generation: queries and DiT, from captions to image features
train-stage3: ## Tune generation on a smaller curated set, from your stage 2
train-edits: ## Tune generation on edits of images, and captions so that it keeps them
train-reconstruct: ## Tune generation without captions, to repeat what the language model sees
train-joint: ## Train understanding and generation together
train-rl: ## Tune generation by rewards of its own images, without new ones
train-preferences: ## Tune generation by pairs of images, one of them preferred: DATA=FOLDER

$(STAGES): $(STAMP)
	$(RUN) fit --preset "$(PRESET)" --stage $(@:train-%=%) $(if $(HARDWARE),--hardware "$(HARDWARE)") \
		$(if $(DATA),--data-dir "$(DATA)") $(ARGS)

demo: $(STAMP) ## Make images, answers and reconstructions with the shipped weights: out/demo
	$(RUN) demo --out out/demo $(ARGS)

app: $(STAMP) ## Show a web page to generate, chat, edit and compare: ARGS="--port=7861"
	@$(RUN) app $(ARGS)

pretrain-tiny: $(STAMP) ## Make the shipped weights again from nothing; resumable, takes hours
	$(RUN) pretrain $(ARGS)

parity: $(STAMP) ## Compare with recorded values of the published code: CASES=FOLDER
	$(RUN) parity "$(CASES)" $(ARGS)

bench: $(STAMP) ## Compare a training step with the published one; ends with JSON
	@.venv/bin/python benchmarks/training.py --out benchmarks/results/training.json $(ARGS)

bench-data: $(STAMP) ## Compare the data loader with webdataset and datasets; ends with JSON
	@.venv/bin/python benchmarks/data.py --out benchmarks/results/data.json $(ARGS)

bench-generate: $(STAMP) ## Compare batches, kept captions and samplers; ends with JSON
	@.venv/bin/python benchmarks/generate.py --out benchmarks/results/generate.json \
		--figure docs/images/samplers.png $(ARGS)

bench-rl: $(STAMP) ## Compare learning from rewards with more of stage 2; ends with JSON
	@.venv/bin/python benchmarks/rewards.py --out benchmarks/results/rewards.json $(ARGS)

bench-serve: $(STAMP) ## Load the server for a minute, then send it nonsense; ends with JSON
	@.venv/bin/python benchmarks/serve.py --out benchmarks/results/serve.json $(ARGS)

rehearse: $(STAMP) ## Try every stage at a preset's real widths, cut to LAYERS; ends with JSON
	@PYTHONPATH=benchmarks .venv/bin/python -m rehearse --preset "$(PRESET)" --layers "$(LAYERS)" \
		--out benchmarks/results/rehearse.json $(ARGS)

gpu-check: $(STAMP) ## Measure all that needs a GPU, 9 minutes; ARGS=--dry-run needs none; ends with JSON
	@PYTHONPATH=benchmarks .venv/bin/python -m gpu_check $(ARGS)

attack: $(STAMP) ## Attack the server, the page and the commands; ends with JSON
	@PYTHONPATH=benchmarks .venv/bin/python -m attack $(ARGS)

torture: $(STAMP) ## Kill N training runs and compare each, resumed, with one left alone; ends with JSON
	@.venv/bin/python benchmarks/torture.py --runs $(N) --seed $(SEED) $(ARGS)

study: $(STAMP) ## Repeat the paper's study in small, hours: ARGS="--plan" says how many; ARGS="--steps N"
	@PYTHONPATH=benchmarks .venv/bin/python -m study $(ARGS)

REAL := PYTHONPATH=benchmarks .venv/bin/python -m verify_real --parts "$(REAL_PARTS)"

real-parts: $(STAMP) ## Download real tokenizers, weights and images for verify-real, 1.5 GB; resumable
	@$(REAL) --fetch

verify-real: $(STAMP) ## Check against real parts (`make real-parts` first), 8 GB of memory; ends with JSON
	@$(REAL) --out benchmarks/results/verify_real.json $(ARGS)

# In the order of names: by their number of tests, as xdist would, the longest files come last.
IN_TWO := -m pytest -n 2 --dist loadfile --no-loadscope-reorder
PYTEST := .venv/bin/python $(IN_TWO)

test: lint ## Lint, then run the test suite but for what is slow
	OMP_NUM_THREADS=1 $(PYTEST) -m "not slow and not sweep" $(ARGS)

test-slow: $(STAMP) $(BESIDE) ## Run the tests that take long, or that need what `make test` does not install
	OMP_NUM_THREADS=1 $(PYTEST) -m slow -o faulthandler_timeout=3600 $(ARGS)

test-sweep: $(STAMP) ## Run every member of the tables that `make test` takes samples of, 10 minutes
	OMP_NUM_THREADS=1 $(PYTEST) -m sweep $(ARGS)

test-portable: $(STAMP) ## Run what depends on rounding as other processors would, on one and two threads
	@.venv/bin/python scripts/portable.py $(ARGS)

test-stack: $(STACK) ## Run the test suite, but for what is slow, on the older stack: constraints-stack.txt
	OMP_NUM_THREADS=1 .venv-stack/bin/python $(IN_TWO) -m "not slow and not sweep" $(ARGS)

test-lowest: $(LOWEST) ## Use every part once with the oldest packages allowed: constraints-lowest.txt
	.venv-lowest/bin/python scripts/smoke.py $(ARGS)

# The Python of .venv makes both.
$(STACK): $(STAMP) constraints-stack.txt
	.venv/bin/python -m venv --clear .venv-stack
	.venv-stack/bin/python -m pip install -qq --no-input --require-hashes --only-binary :all: \
		-r constraints-stack.txt
	.venv-stack/bin/python -m pip install -qq --no-input --no-deps --no-build-isolation -e .
	@touch $@

# omegaconf's antlr4 runtime is published as source alone: the locked setuptools comes first and builds it.
$(LOWEST): $(STAMP) constraints-lowest.txt
	.venv/bin/python -m venv --clear .venv-lowest
	awk '/^[^ ]/ {wanted = /^setuptools==/} wanted' constraints-lowest.txt > .venv-lowest/build.txt
	.venv-lowest/bin/python -m pip install -qq --no-input --require-hashes --only-binary :all: \
		-r .venv-lowest/build.txt
	.venv-lowest/bin/python -m pip install -qq --no-input --require-hashes --no-build-isolation \
		--only-binary :all: --no-binary antlr4-python3-runtime -r constraints-lowest.txt
	.venv-lowest/bin/python -m pip install -qq --no-input --no-deps --no-build-isolation -e .
	@touch $@

$(BESIDE): $(STAMP) tests/beside.txt
	.venv/bin/python -m pip install -qq --no-input --upgrade --target .venv/beside --no-deps \
		--require-hashes --only-binary :all: -r tests/beside.txt
	@touch $@

lint: $(STAMP) ## Check style and formatting
	.venv/bin/ruff check $(CODE)
	.venv/bin/ruff check --preview --select PLR0917 src callbacks data_modules
	.venv/bin/ruff format --check $(CODE)

docs: $(STAMP) ## Build the documentation site and check its links: site/index.html
	@NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --strict $(ARGS)

audit: $(STAMP) ## Look the locked packages up among known vulnerabilities; needs the network
	@.venv/bin/python scripts/audit.py $(ARGS)

clean: ## Delete caches and build leftovers; .venv, data, runs and out stay
	rm -rf build dist site .pytest_cache .ruff_cache src/*.egg-info
	find src callbacks data_modules tests -name __pycache__ -prune -exec rm -rf {} +
