# Everything needed is python3.11 and make; `make help` lists what can be done.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
PACKAGES := activation_dataset beam_pipeline corpus qwen transforms

# A stamp is newer than the lock that it was installed from, so unchanged locks cost nothing.
RUNTIME := $(VENV)/.installed-base
DEVELOP := $(VENV)/.installed-dev
EXTENSIONS := $(wildcard activation_dataset/native/*.cc activation_dataset/native/*.h \
    qwen/ops/*/*.cc qwen/ops/*/*.h)
AUDIT_VENV := .venv-audit
AUDIT := $(AUDIT_VENV)/.installed
PIP_AUDIT := $(AUDIT_VENV)/bin/pip-audit --disable-pip
COMPOSER_VENV := .venv-composer
COMPOSER := $(COMPOSER_VENV)/.installed
TPU_VENV := .venv-tpu
TPU := $(TPU_VENV)/.installed
INTEROP_VENV := .venv-interop
INTEROP := $(INTEROP_VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: audit bench composer-test demo demo-tokens format gpu-check help image-check interop-test lint lock reliability setup test tpu-check train clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(DEVELOP) ## create .venv and install everything that tests need, pinned

test: $(DEVELOP) lint ## lint, check types and run the tests; sets up first if needed
	$(BIN)/python -m pytest $(PYTEST_ARGS)

composer-test: $(COMPOSER) ## run the Composer DAG's tests in a real Airflow, in its own environment
	AIRFLOW_HOME=$(abspath $(COMPOSER_VENV))/airflow AIRFLOW__CORE__LOAD_EXAMPLES=False \
	    $(COMPOSER_VENV)/bin/python -m pytest --config-file=/dev/null --rootdir=. \
	    --confcutdir=tests/composer -p no:cacheprovider --disable-warnings tests/composer

interop-test: $(INTEROP) ## train SAELens and dictionary_learning on exports, in an environment of their own
	$(INTEROP_VENV)/bin/python -m pytest --config-file=/dev/null --rootdir=. \
	    --import-mode=importlib -p no:cacheprovider --disable-warnings tests/interop

image-check: $(DEVELOP) ## carry out the container image's build steps here, and run the job with them
	$(BIN)/python -m pytest -m image tests/templates

reliability: $(DEVELOP) ## try to break the job and its datasets; an hour or two, needs root for its disks
	$(BIN)/python -m reliability.kill --kills 50 --workers 1 --seed 1
	$(BIN)/python -m reliability.kill --kills 50 --workers 2 --seed 2
	$(BIN)/python -m reliability.kill --kills 10 --workers 2 --seed 3 --victim worker
	$(BIN)/python -m reliability.damage --flips 2200 --cuts 600 --seed 1
	$(BIN)/python -m reliability.mishaps --seed 1
	$(BIN)/python -m reliability.retry
	$(BIN)/python -m reliability.fuzz all --inputs 300000 --seed 1
	$(BIN)/python -m reliability.memory
	$(BIN)/python -m benchmarks.growth

# Tried on the smallest lock first. Where that can be looked up, what cannot be counts as a fault.
audit: $(AUDIT) ## look up advisories on all that is locked, in an environment of its own
	@answer=$$($(PIP_AUDIT) --strict --require-hashes --requirement requirements/uv.txt 2>&1); \
	case "$$answer" in *"known vulnerabilit"*) ;; \
	    *) echo "audit: skipped, no advisories can be looked up from here: $$answer"; exit;; esac; \
	for lock in $(filter-out requirements/torch.txt,$(wildcard requirements/*.txt)); do \
	    $(PIP_AUDIT) --strict --require-hashes --requirement $$lock || status=1; done; \
	$(PIP_AUDIT) --strict --no-deps --requirement requirements/torch.txt || status=1; \
	exit $${status:-0}

lint: $(DEVELOP) ## ruff and mypy, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(DEVELOP) ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: $(RUNTIME) ## extract activations for the shipped tasks with a tiny random model
	$(BIN)/python -m beam_pipeline --model_path random:tiny \
	    --tasks_file 'examples/tasks/*.json' --output_dir demo-output --overwrite

demo-tokens: demo-tokens/metadata.json ## extract every token of layer 12, for eight variants of each shipped task

# Written last, so that it stands for all of it.
demo-tokens/metadata.json: | $(RUNTIME)
	$(BIN)/python -m beam_pipeline --model_path random:tiny \
	    --tasks_file 'examples/tasks/*.json' --layers_to_extract 12 --pooling none --augment 8 \
	    --output_dir demo-tokens

train: demo-tokens/metadata.json ## train a sparse autoencoder on them, and draw it: sae/report.html
	$(BIN)/python -m examples.train_sae demo-tokens --output sae

bench: $(DEVELOP) ## time the model, the job, its start and reading, side by side with peers; half an hour
	$(BIN)/python -m benchmarks.trunk
	$(BIN)/python -m benchmarks.pipeline
	$(BIN)/python -m benchmarks.startup
	$(BIN)/python -m benchmarks.reading
	@if test -e $(INTEROP); then $(INTEROP_VENV)/bin/python -m benchmarks.loaders; \
	    else echo "bench: other loaders were not timed: make interop-test installs them"; fi

tpu-check: ## compile for TPUs with their own compiler, and predict from it; needs no TPU
	@$(MAKE) --no-print-directory $(TPU) || \
	    echo "tpu-check: skipped, libtpu (the TPU compiler) cannot be installed here: see above"
	@test ! -e $(TPU) || $(TPU_VENV)/bin/python -m benchmarks.tpu_check $(TPU_CHECK_ARGS)

gpu-check: $(DEVELOP) ## time the model on a GPU beside transformers; a tiny one where there is none
	$(BIN)/python -m benchmarks.gpu_check

lock: $(DEVELOP) ## resolve setup.py into requirements/; LOCK_ARGS=--upgrade renews all
	requirements/lock.sh $(BIN)/uv $(LOCK_ARGS)

clean: ## remove what make and the tools made, .venv included
	rm -rf $(VENV) $(AUDIT_VENV) $(COMPOSER_VENV) $(TPU_VENV) $(INTEROP_VENV) build demo-output demo-tokens sae *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

# uv installs in a tenth of pip's time; pip stands in where only pip knows the way to an index.
install = $(BIN)/uv pip install --quiet --python $(BIN)/python $(1) || $(PIP) install $(1)

$(BIN)/uv: requirements/uv.txt
	@echo "setup: virtual environment $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --require-hashes --requirement $<
	@touch $@

$(RUNTIME): requirements/base.txt setup.py $(EXTENSIONS) $(BIN)/uv
	@echo "setup: what the job needs (requirements/base.txt)"
	@$(call install,--require-hashes --requirement requirements/base.txt)
	@$(call install,--no-deps --no-build-isolation --editable .)
	@touch $@

$(DEVELOP): requirements/dev.txt requirements/torch.txt $(RUNTIME)
	@echo "setup: what the tests need (requirements/dev.txt, torch.txt)"
	@$(call install,--require-hashes --requirement requirements/dev.txt)
	@$(PIP) install --requirement requirements/torch.txt
	@touch $@

$(COMPOSER): requirements/composer.txt $(BIN)/uv
	@echo "setup: Airflow (requirements/composer.txt)"
	@test -x $(COMPOSER_VENV)/bin/python || $(PYTHON) -m venv $(COMPOSER_VENV)
	@$(BIN)/uv pip install --quiet --python $(COMPOSER_VENV)/bin/python \
	    --require-hashes --requirement $<
	@AIRFLOW_HOME=$(abspath $(COMPOSER_VENV))/airflow $(COMPOSER_VENV)/bin/airflow db migrate \
	    >$(COMPOSER_VENV)/migrate.log 2>&1
	@touch $@

$(TPU): requirements/tpu.txt $(BIN)/uv
	@echo "setup: the TPU compiler (requirements/tpu.txt)"
	@rm -f $@
	@test -x $(TPU_VENV)/bin/python || $(PYTHON) -m venv $(TPU_VENV)
	@$(BIN)/uv pip install --quiet --python $(TPU_VENV)/bin/python --require-hashes --requirement $<
	@touch $@

$(AUDIT): Makefile
	@test -x $(AUDIT_VENV)/bin/python || $(PYTHON) -m venv $(AUDIT_VENV)
	@$(AUDIT_VENV)/bin/python -m pip --disable-pip-version-check --quiet install pip-audit==2.10.1
	@touch $@

# Torch first: the lock leaves it to torch.txt, and is whole without looking for dependencies.
$(INTEROP): requirements/interop.txt requirements/torch.txt $(BIN)/uv
	@echo "setup: SAELens and dictionary_learning (requirements/interop.txt, torch.txt)"
	@test -x $(INTEROP_VENV)/bin/python || $(PYTHON) -m venv $(INTEROP_VENV)
	@$(INTEROP_VENV)/bin/python -m pip --disable-pip-version-check --quiet install \
	    --requirement requirements/torch.txt
	@$(BIN)/uv pip install --quiet --python $(INTEROP_VENV)/bin/python --no-deps \
	    --require-hashes --requirement $<
	@touch $@
