# Everything needed is python3.11 and make; `make help` lists what can be done.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
PACKAGES := activation_dataset beam_pipeline corpus qwen2 transforms

# A stamp is newer than the lock that it was installed from, so unchanged locks cost nothing.
RUNTIME := $(VENV)/.installed-base
DEVELOP := $(VENV)/.installed-dev

.DEFAULT_GOAL := help
.PHONY: help setup test lint format demo lock clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(DEVELOP) ## create .venv and install everything that tests need, pinned

test: $(DEVELOP) lint ## lint, check types and run the tests; sets up first if needed
	$(BIN)/python -m pytest $(PYTEST_ARGS)

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

lock: $(DEVELOP) ## resolve setup.py again into the pinned files of requirements/
	requirements/lock.sh $(BIN)/uv

clean: ## remove what make and the tools made, .venv included
	rm -rf $(VENV) build demo-output *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

# uv installs in a tenth of pip's time; pip stands in where only pip knows the way to an index.
install = $(BIN)/uv pip install --quiet --python $(BIN)/python $(1) || $(PIP) install $(1)

$(BIN)/uv: requirements/uv.txt
	@echo "setup: virtual environment $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --require-hashes --requirement $<
	@touch $@

$(RUNTIME): requirements/base.txt setup.py $(BIN)/uv
	@echo "setup: what the job needs (requirements/base.txt)"
	@$(call install,--require-hashes --requirement requirements/base.txt)
	@$(call install,--no-deps --no-build-isolation --editable .)
	@touch $@

$(DEVELOP): requirements/dev.txt requirements/torch.txt $(RUNTIME)
	@echo "setup: what the tests need (requirements/dev.txt, torch.txt)"
	@$(call install,--require-hashes --requirement requirements/dev.txt)
	@$(PIP) install --requirement requirements/torch.txt
	@touch $@
