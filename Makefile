# A machine needs make and Python 3.11, 3.12 or 3.13; `make help` lists the targets.

# Newest supported Python, on PATH or installed by pyenv. PYTHON=... chooses another one.
PYTHONS := 13 12 11
newest = $(shell for minor in $(1); do \
    for python in python3.$$minor python3 \
        "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/3.$$minor.*/bin/python3.$$minor; do \
        "$$python" -c "import ensurepip, sys, venv; assert sys.version_info[1] == $$minor" \
            2>/dev/null && echo "$$python" && exit; \
    done; done)
PYTHON ?= $(call newest,$(PYTHONS))

VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv

# A proxy with its own certificate authority requires the system's certificates. uv uses them on
# request; pip before 24.2 needs the path of the file.
export UV_SYSTEM_CERTS := true
CERTIFICATES := $(firstword $(SSL_CERT_FILE) $(wildcard \
    /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/cert.pem))

# A stamp is newer than its lock, so an unchanged lock is not installed again.
RUNTIME := $(VENV)/.installed-base
DEVELOP := $(VENV)/.installed-dev
KERNELS := $(wildcard qwen/ops/amx/*.cc qwen/ops/amx/*.h)
AUDIT_VENV := .venv-audit
AUDIT := $(AUDIT_VENV)/.installed
PIP_AUDIT := $(if $(CERTIFICATES),REQUESTS_CA_BUNDLE=$(CERTIFICATES)) $(AUDIT_VENV)/bin/pip-audit --disable-pip
COMPOSER_VENV := .venv-composer
COMPOSER := $(COMPOSER_VENV)/.installed
DOCS_VENV := .venv-docs
DOCS := $(DOCS_VENV)/.installed
ORDERS_VENV := .venv-orders
ORDERS := $(ORDERS_VENV)/.installed
TORCH_VENV := .venv-torch
TORCH := $(TORCH_VENV)/.installed
TPU_VENV := .venv-tpu
TPU := $(TPU_VENV)/.installed
ENGINES_DIR := .engines
ENGINES := $(ENGINES_DIR)/.installed
BEAM := $(shell sed -n 's/^apache-beam==\([0-9.]*\).*/\1/p' requirements/base.txt)

PARALLEL := --numprocesses auto --dist worksteal
TORCH_TESTS = $(shell grep -rlE 'pytest\.mark\.torch\b' --include='test_*.py' tests)

.DEFAULT_GOAL := help
.PHONY: audit bench clean composer-test demo demo-tokens docs engine-test format gpu-check help image-check \
    import-orders lint lock reliability setup test torch-test tpu-check train

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(DEVELOP) ## create .venv and install everything that tests need, pinned

test: $(DEVELOP) lint ## lint, check types and run the tests; sets up first if needed
	$(BIN)/python -m pytest $(PARALLEL) $(PYTEST_ARGS)

torch-test: $(TORCH) ## run the tests with torch (parity, readers, SAELens) in their own environment
	PYTHONPATH=$(CURDIR) $(TORCH_VENV)/bin/python -m pytest $(PARALLEL) -m torch $(PYTEST_ARGS) $(TORCH_TESTS)
	$(TORCH_VENV)/bin/python -m pytest --override-ini addopts=--import-mode=importlib tests/interop

composer-test: $(COMPOSER) ## run the Composer DAG's tests with Airflow in their own environment
	AIRFLOW_HOME=$(abspath $(COMPOSER_VENV))/airflow AIRFLOW__CORE__LOAD_EXAMPLES=False \
	    $(COMPOSER_VENV)/bin/python -m pytest --config-file=/dev/null --rootdir=. \
	    --confcutdir=tests/composer -p no:cacheprovider --disable-warnings tests/composer

image-check: $(DEVELOP) ## run the container image's build steps locally, and the job with the result
	$(BIN)/python -m pytest -m image tests/templates

engine-test: $(DEVELOP) $(ENGINES) ## run the job on Prism and on a Flink cluster; needs Go, Java and Maven
	$(BIN)/python -m pytest -m engines tests/engines $(PYTEST_ARGS)

docs: $(DOCS) $(DEVELOP) ## build docs/ as a site in build/site; fails on broken links and on pages that are too wide
	JAX_PLATFORMS=cpu $(DOCS_VENV)/bin/python -m sphinx --fail-on-warning --keep-going --fresh-env --quiet \
	    --doctree-dir build/doctrees docs build/site
	$(BIN)/python -m pytest -m site tests/test_site.py

import-orders: $(ORDERS) ## import this project, TensorFlow and torch in every order; takes 8 GB
	$(ORDERS_VENV)/bin/python -m pytest -m import_orders tests/test_imports.py

reliability: $(DEVELOP) ## try to break the job and its datasets; takes an hour or two, needs root to mount disks
	$(BIN)/python -m reliability.kill --kills 50 --workers 1 --seed 1
	$(BIN)/python -m reliability.kill --kills 50 --workers 2 --seed 2
	$(BIN)/python -m reliability.damage --flips 2200 --cuts 600 --seed 1
	$(BIN)/python -m reliability.mishaps --seed 1
	$(BIN)/python -m reliability.retry
	$(BIN)/python -m pytest -k "attempts or materializes or partial" tests/transforms
	$(BIN)/python -m reliability.fuzz all --inputs 300000 --seed 1
	$(BIN)/python -m reliability.memory
	$(BIN)/python -m reliability.windows
	$(BIN)/python -m benchmarks.growth

# The smallest lock comes first. If its look-up works, a failed look-up of another lock is an error.
audit: $(AUDIT) ## look up advisories on all locked packages, in its own environment
	@answer=$$($(PIP_AUDIT) --strict --require-hashes --requirement requirements/uv.txt 2>&1); \
	case "$$answer" in *"known vulnerab"*) ;; \
	    *) echo "audit: skipped, advisories cannot be looked up from this machine: $$answer"; exit;; esac; \
	for lock in $(filter-out requirements/torch.txt,$(wildcard requirements/*.txt)); do \
	    $(PIP_AUDIT) --strict --require-hashes --requirement $$lock || status=1; done; \
	$(PIP_AUDIT) --strict --no-deps --requirement requirements/torch.txt || status=1; \
	exit $${status:-0}

lint: $(DEVELOP) ## check with ruff, codespell and mypy; changes no file
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy

format: $(DEVELOP) ## format the code and apply ruff's automatic fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: $(RUNTIME) ## extract activations for the shipped tasks with a tiny random model
	$(BIN)/python -m beam_pipeline --model_path random:tiny \
	    --tasks_file 'examples/tasks/*.json' --output_dir demo-output --overwrite

demo-tokens: demo-tokens/metadata.json ## extract every token of layer 12, for eight variants of each shipped task

# The job writes metadata.json last, so it exists only for a complete dataset.
demo-tokens/metadata.json: | $(RUNTIME)
	$(BIN)/python -m beam_pipeline --model_path random:tiny \
	    --tasks_file 'examples/tasks/*.json' --layers_to_extract 12 --pooling none --augment 8 \
	    --output_dir demo-tokens

train: demo-tokens/metadata.json ## train a sparse autoencoder on the demo tokens; writes sae/report.html
	$(BIN)/python -m examples.train_sae demo-tokens --output sae

bench: $(DEVELOP) ## time the model, the job, its start and reading, compared with peers; takes half an hour
	$(BIN)/python -m benchmarks.pipeline
	$(BIN)/python -m benchmarks.startup
	$(BIN)/python -m benchmarks.reading
	@if test -e $(TORCH); then $(TORCH_VENV)/bin/python -m benchmarks.trunk && \
	    $(TORCH_VENV)/bin/python -m benchmarks.loaders; \
	    else echo "bench: skipped peers that need torch; make torch-test installs them"; fi

tpu-check: ## compile for TPUs and predict the speed; needs no TPU
	@$(MAKE) --no-print-directory $(TPU) || \
	    echo "tpu-check: skipped, libtpu (the TPU compiler) cannot be installed on this machine; see above"
	@test ! -e $(TPU) || $(TPU_VENV)/bin/python -m benchmarks.tpu_check $(TPU_CHECK_ARGS)

gpu-check: $(TORCH) ## time the model on a GPU, compared with transformers; without a GPU, a tiny model
	$(TORCH_VENV)/bin/python -m benchmarks.gpu_check

lock: $(UV) ## resolve pyproject.toml into requirements/; LOCK_ARGS=--upgrade upgrades all packages
	requirements/lock.sh $(UV) $(LOCK_ARGS)

clean: ## remove all generated files, including .venv
	rm -rf $(VENV) $(AUDIT_VENV) $(COMPOSER_VENV) $(DOCS_VENV) $(ENGINES_DIR) $(ORDERS_VENV) $(TORCH_VENV) $(TPU_VENV) build \
	    demo-output demo-tokens sae text-activations text-sae texts.parquet *.egg-info .mypy_cache \
	    .pytest_cache .ruff_cache .hypothesis

# Create the environment $(1) with the Python $(2), unless it exists. $(3) describes that Python.
define environment
	@test -x $(1)/bin/python || { \
	    python="$(2)"; \
	    test -n "$$python" || { echo "setup: found no $(3); set PYTHON=..." >&2; exit 1; }; \
	    echo "setup: $(1) with $$("$$python" --version) ($$python)"; \
	    "$$python" -m venv $(1); }
endef
SUPPORTED := Python 3.11, 3.12 or 3.13 with its venv module
install = @$(UV) pip install --quiet --python $(1)/bin/python
hashed = --require-hashes --requirement

$(UV): requirements/uv.txt
	$(call environment,$(VENV),$(PYTHON),$(SUPPORTED))
	@if test -n "$(CERTIFICATES)" && ! $(BIN)/python -m pip config get global.cert >/dev/null 2>&1; \
	    then export PIP_CERT="$${PIP_CERT:-$(CERTIFICATES)}"; fi; \
	    $(BIN)/python -m pip --disable-pip-version-check --quiet install $(hashed) $<
	@touch $@

$(RUNTIME): requirements/base.txt setup.py pyproject.toml $(KERNELS) $(UV)
	@echo "setup: packages of the job (requirements/base.txt)"
	$(call install,$(VENV)) $(hashed) requirements/base.txt
	$(call install,$(VENV)) --no-deps --no-build-isolation --editable .
	@suffix=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))'); \
	    test -e qwen/ops/amx/library$$suffix || \
	    echo "setup: WARNING: no AMX kernels; they need Linux on x86-64 and a C++ compiler"
	@touch $@

$(DEVELOP): requirements/dev.txt $(RUNTIME)
	@echo "setup: packages of the tests (requirements/dev.txt)"
	$(call install,$(VENV)) $(hashed) requirements/dev.txt
	@touch $@

# interop.txt is complete except for torch; it has torch's dependencies except the CUDA libraries.
$(TORCH): requirements/interop.txt requirements/torch.txt $(RUNTIME)
	@echo "setup: torch, SAELens and dictionary_learning (requirements/interop.txt, torch.txt)"
	$(call environment,$(TORCH_VENV),$(BIN)/python,$(SUPPORTED))
	$(call install,$(TORCH_VENV)) --no-deps $(hashed) requirements/interop.txt
	$(call install,$(TORCH_VENV)) --requirement requirements/torch.txt
	@touch $@

$(ORDERS): requirements/dev.txt requirements/torch.txt $(RUNTIME)
	$(call environment,$(ORDERS_VENV),$(BIN)/python,$(SUPPORTED))
	$(call install,$(ORDERS_VENV)) $(hashed) requirements/dev.txt
	$(call install,$(ORDERS_VENV)) --requirement requirements/torch.txt
	@touch $@

# Sphinx makes the reference from docstrings, so it must be able to import the packages.
$(DOCS): requirements/docs.txt $(RUNTIME)
	@echo "setup: packages of the documentation (requirements/docs.txt)"
	$(call environment,$(DOCS_VENV),$(BIN)/python,$(SUPPORTED))
	$(call install,$(DOCS_VENV)) $(hashed) requirements/base.txt --requirement requirements/docs.txt
	@touch $@

# Composer runs Airflow on Python 3.11, so the lock is for that version.
$(COMPOSER): requirements/composer.txt $(UV)
	@echo "setup: Airflow (requirements/composer.txt)"
	$(call environment,$(COMPOSER_VENV),$(call newest,11),Python 3.11)
	$(call install,$(COMPOSER_VENV)) $(hashed) $<
	@AIRFLOW_HOME=$(abspath $(COMPOSER_VENV))/airflow $(COMPOSER_VENV)/bin/airflow db migrate \
	    >$(COMPOSER_VENV)/migrate.log 2>&1
	@touch $@

$(TPU): requirements/tpu.txt $(UV)
	@echo "setup: the TPU compiler (requirements/tpu.txt)"
	@rm -f $@
	$(call environment,$(TPU_VENV),$(BIN)/python,$(SUPPORTED))
	$(call install,$(TPU_VENV)) $(hashed) $<
	@touch $@

# Prism and the program that starts workers have the version of the Python SDK. Flink's own libraries
# come from the source archive of its Python package.
GO_BEAM := github.com/apache/beam/sdks/v2
$(ENGINES): requirements/base.txt tests/engines/pom.xml tests/engines/flink.txt $(UV)
	@for tool in go java mvn; do command -v $$tool >/dev/null || { \
	    echo "engine-test: $$tool is missing; it needs Go, Java 11 or newer, and Maven" >&2; exit 1; }; \
	done
	@echo "setup: Prism $(BEAM), and Flink with its job server (tests/engines)"
	@mkdir -p $(ENGINES_DIR)/flink
	@GOBIN=$(abspath $(ENGINES_DIR))/bin go install \
	    $(GO_BEAM)/go/cmd/prism@v$(BEAM) && mv $(ENGINES_DIR)/bin/prism $(ENGINES_DIR)/prism
	@GOBIN=$(abspath $(ENGINES_DIR))/bin go install \
	    $(GO_BEAM)/python/container@v$(BEAM) && mv $(ENGINES_DIR)/bin/container $(ENGINES_DIR)/boot
	@mvn --quiet --batch-mode --file tests/engines/pom.xml dependency:build-classpath \
	    -Dmdep.outputFile=$(abspath $(ENGINES_DIR))/job-server.classpath
	@$(BIN)/python -m pip --disable-pip-version-check --quiet download --no-deps --no-binary :all: \
	    --require-hashes --requirement tests/engines/flink.txt --dest $(ENGINES_DIR)
	@tar --extract --gzip --file $(ENGINES_DIR)/apache-flink-libraries-*.tar.gz \
	    --directory $(ENGINES_DIR)/flink --strip-components 3 --wildcards '*/deps/lib/*.jar'
	@rm $(ENGINES_DIR)/apache-flink-libraries-*.tar.gz
	@touch $@

$(AUDIT): $(UV)
	$(call environment,$(AUDIT_VENV),$(BIN)/python,$(SUPPORTED))
	$(call install,$(AUDIT_VENV)) pip-audit==2.10.1
	@touch $@
