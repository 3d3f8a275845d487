# Two commands: `make figures` and `make test`. Both make the environment first, once.
PYTHON ?= python3
CORES ?= all
VENV := .venv
VALIDATOR := build/roc-validator
BIN := $(VENV)/bin
READY := $(VENV)/ready
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help figures schema test test-thorough codecheck test-reference test-fuzz test-faults test-slurm test-report test-docs test-crate test-container lint format environment cluster lock docs clean
help:
	@echo "make figures      every figure and claim of the default study (environment first, if there is none)"
	@echo "make test         format, lint, then the tests"
	@echo "make test-thorough   the tests that take longer: a second run, replicates, conda, figures of other data, the report in Chromium"
	@echo "make codecheck    remake what codecheck.yml lists in a clean clone and compare it with what is committed (as long as the default study)"
	@echo "make test-reference   run the default study from nothing and compare its claims with the published ones (as long as the default study)"
	@echo "make test-fuzz    give 700 random configs to Snakemake, which plans or refuses each (9 minutes)"
	@echo "make test-faults  break running studies on purpose (20 minutes; --only in tests/faults.py chooses)"
	@echo "make test-slurm   start a SLURM cluster here, run the smoke study on it, break it (root on Debian; 14 minutes)"
	@echo "make test-report  the HTML report in headless Chromium (needs chromium and chromium-driver)"
	@echo "make test-docs    the commands, the tutorial and the extensions that the documentation shows"
	@echo "make test-crate   validate the description of a run by roc-validator, in an environment of its own"
	@echo "make test-container   build envs/Containerfile, or replay it in a plain environment where there is no podman"
	@echo "make cluster      add Snakemake's plugins for SLURM, Kubernetes and S3 to the environment"
	@echo "make docs         render the documentation into docs/_build/html"
	@echo "make format       rewrite Python and Snakemake files in the project's format"
	@echo "make lock         resolve envs/*.lock anew (needs uv)"
	@echo "make clean        delete results/, figures/ (but figures/reference) and logs/"

environment: $(READY)

$(READY): envs/requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than Python 3.11; install a newer one and say make PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing the environment into $(VENV) (about 2 minutes and 6 GB with PyTorch for Linux) ..."
	@$(BIN)/python -m pip install --quiet --no-deps --requirement envs/requirements.lock
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

figures: $(READY)
	@snakemake --cores $(CORES)

schema: $(READY)
	@cca-dynamics schema --out workflow/schemas/config.schema.yaml

test: lint
	@pytest -n 2 --dist loadfile --no-loadscope-reorder

test-thorough: $(READY)
	@pytest -n 2 --dist loadfile --no-loadscope-reorder -m thorough

codecheck: $(READY)
	@$(BIN)/python -m tests.codecheck

test-reference: $(READY)
	@pytest -m slow tests/test_reference.py

test-fuzz: $(READY)
	@pytest -m slow -s tests/test_fuzz.py

test-faults: $(READY)
	@$(BIN)/python tests/faults.py

test-slurm: cluster
	@$(BIN)/python tests/slurm.py

test-report: $(READY)
	@$(BIN)/python -m pip install --quiet --no-deps --requirement envs/requirements-browser.lock
	@command -v chromedriver > /dev/null || \
	  { echo "error: Chromium is missing; apt-get install chromium chromium-driver" >&2; exit 1; }
	@pytest -m '' tests/test_report.py

test-docs: $(READY)
	@pytest -m 'slow or thorough' tests/test_docs.py

test-crate: $(READY)
	@test -x $(VALIDATOR)/bin/python || $(BIN)/python -m venv $(VALIDATOR)
	@$(VALIDATOR)/bin/python -m pip install --quiet --no-deps --requirement envs/requirements-crate.lock
	@pytest tests/test_crate.py

test-container: $(READY)
	@$(BIN)/python tests/container.py

cluster: $(READY)
	@$(BIN)/python -m pip install --quiet --no-deps --requirement envs/requirements-cluster.lock

docs: $(READY)
	@$(BIN)/python -m pip install --quiet --no-deps --requirement envs/requirements-docs.lock
	@$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going docs docs/_build/html
	@echo "docs/_build/html/index.html"

lint: $(READY)
	@ruff format --check --quiet .
	@ruff check --quiet .
	@lint-imports --no-cache > /dev/null || lint-imports --no-cache
	@snakefmt --check Snakefile workflow/Snakefile workflow/rules
	@snakemake --lint

format: $(READY)
	@ruff format .
	@ruff check --fix .
	@snakefmt Snakefile workflow/Snakefile workflow/rules

COMPILE := uv pip compile --universal --python-version 3.11 --no-annotate --no-emit-index-url --no-header
lock:
	$(COMPILE) pyproject.toml --extra slurm --extra kubernetes --output-file envs/requirements-cluster.lock
	$(COMPILE) pyproject.toml --extra dev --constraint envs/requirements-cluster.lock --output-file envs/requirements.lock
	@echo "# What \`make docs\` needs beyond requirements.lock. Made by \`make lock\`; names and versions only." > envs/requirements-docs.lock
	$(COMPILE) pyproject.toml --extra docs --constraint envs/requirements.lock | grep -vxFf envs/requirements.lock >> envs/requirements-docs.lock
	@echo "# What \`make test-crate\` needs, in an environment of its own. Made by \`make lock\`; names and versions only." > envs/requirements-crate.lock
	echo roc-validator | $(COMPILE) - >> envs/requirements-crate.lock

clean:
	rm -rf results logs .snakemake
	find figures -mindepth 1 -maxdepth 1 ! -name reference -exec rm -rf {} +
