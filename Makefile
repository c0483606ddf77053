# `make help` lists the commands. PYTHON picks the interpreter, ARGS passes options on.

PYTHON ?= python3
ARGS ?=

BIN := .venv/bin
NEXT := .venv-next/bin
PIP_FLAGS := --quiet --quiet --disable-pip-version-check --no-input
CHECKED := operators rx_backend rx_backend_cli.py tests tools examples conftest.py docs/conf.py $(wildcard benchmarks)

unexport PYTHONPATH
# Hundreds of processes are started by the tests; each would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help venv run serve test lint unit unit-next test-pythons test-browser test-cluster test-engines test-vllm bench docs site check-site docs-links notebooks package release fix pin clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

venv: .venv/.stamp ## set up .venv with everything pinned in constraints.txt

run: venv ## run an engine through the pipeline and report (ARGS="--help" lists the options)
	@$(BIN)/rx-backend run $(ARGS)

serve: venv ## serve an example engine behind the OpenAI API (ARGS="--http-port 8080")
	@cd examples && exec ../$(BIN)/rx-backend serve echo_engine:EchoEngine --frontend --grace-s 0 $(ARGS)

test: venv ## all checks, three at a time: lint, tests, also on other Pythons and a new reactivex, a cluster, a browser, models, packages, the site
	@$(BIN)/python -m tools.cluster & cluster=$$!; \
	$(BIN)/python -m tools.engines --check & engines=$$!; \
	$(BIN)/python -m tools.browser & browser=$$!; \
	$(MAKE) --no-print-directory .venv-next/.stamp; \
	wait $$cluster && cluster=test-cluster || cluster=; \
	wait $$engines && engines=test-engines || engines=; \
	wait $$browser && browser=test-browser || browser=; \
	$(MAKE) --no-print-directory --jobs=3 --keep-going --output-sync=target \
		unit test-pythons $$cluster lint $$engines unit-next package $$browser check-site

lint: venv ## style, types and layers
	@echo "== ruff check"
	@$(BIN)/ruff check --quiet $(CHECKED)
	@echo "== ruff format"
	@$(BIN)/ruff format --quiet --check $(CHECKED) || \
		{ echo "make fix formats these files:"; $(BIN)/ruff format --check $(CHECKED); exit 1; }
	@echo "== pyright"
	@$(BIN)/pyright --pythonpath $(BIN)/python
	@echo "== mypy"
	@$(BIN)/mypy
	@echo "== types in documents"
	@$(BIN)/python -m tools.snippets
	@echo "== import layers"
	@$(BIN)/lint-imports --no-cache --no-logo

unit: venv ## the tests, doctests and README snippets (ARGS="-k name" picks some)
	@echo "== tests"
	@$(BIN)/python -m pytest $(ARGS)

unit-next: .venv-next/.stamp ## the tests of operators and pipelines on the newest reactivex, without aioreactive
	@echo "== tests on the newest reactivex"
	@RX_BACKEND_MATRIX=3000 $(NEXT)/python -m pytest --hypothesis-profile=few operators rx_backend \
		tests/operators tests/matrix tests/rx_backend/test_*.py \
		tests/rx_backend/pictures/test_marble_run.py tests/rx_backend/testing/test_marbles.py $(ARGS)

test-pythons: venv ## the library's tests on Python 3.12 (lowest dependencies) and 3.13, the matrix on other loops
	@echo "== tests on other Pythons and event loops"
	@$(BIN)/python -m tools.pythons $(ARGS)

test-browser: venv ## the tests of the page in Chromium, for which it fetches Debian's packages
	@$(BIN)/python -m tools.browser
	@echo "== tests in a browser"
	@$(BIN)/python -m pytest -m browser tests/e2e $(ARGS)

test-cluster: venv ## the tests on etcd, NATS and Prometheus, for which it fetches Debian's packages
	@$(BIN)/python -m tools.cluster
	@echo "== tests on etcd, NATS and Prometheus"
	@$(BIN)/python -m pytest -m cluster tests/rx_backend/cluster \
		tests/rx_backend/resumable/jetstream tests/rx_backend/telemetry/test_dashboard.py tests/e2e $(ARGS)

test-engines: venv ## the tests of engines on models, where there are builds for CPUs
	@$(BIN)/python -m tools.engines
	@echo "== tests of engines on models"
	@OMP_NUM_THREADS=1 .venv-engines/bin/python -m pytest tests/real \
		tests/rx_backend/worker/test_models.py \
		'tests/test_notebooks.py::test_notebook_runs[real_model]' $(ARGS)

test-vllm: venv ## the tests of vLLM and of Dynamo's worker for it, on CPUs (3.5 GB; not part of make test)
	@$(BIN)/python -m tools.vllm
	@echo "== tests of vLLM"
	@.venv-vllm/bin/python -m pytest tests/real -k vllm $(ARGS)

bench: venv ## measure the pipeline against its baselines
	@$(BIN)/python -m benchmarks $(ARGS)

docs: venv ## write docs/behaviour.md, docs/reference.md and the dashboard, build the site
	@$(BIN)/python -m tools.behaviour
	@$(BIN)/python -m tools.reference
	@$(BIN)/python -m tools.dashboard
	@$(MAKE) --no-print-directory site

site: venv ## build the site alone, with its links checked
	@echo "== site of the documents"
	@$(BIN)/python -m tools.site

check-site: venv ## read every page and docstring of the site and follow its links, write no HTML
	@echo "== pages of the site"
	@$(BIN)/python -m tools.site --check

docs-links: venv ## ask for every external link of the documents
	@$(BIN)/python -m tools.site --external-links

notebooks: venv ## run the notebooks again and store their outputs (ARGS names some)
	@$(BIN)/python -m tools.notebooks $(ARGS)

package: venv ## build sdist and wheel, check them, and install them into empty environments
	@$(BIN)/python -m tools.package

release: venv ## set the version, close the changelog, commit and tag (VERSION=0.2.0); publishes nothing
	@$(BIN)/python -m tools.release $(VERSION)

fix: venv ## format, and mend what ruff can mend
	@$(BIN)/ruff check --quiet --fix-only $(CHECKED)
	@$(BIN)/ruff format --quiet $(CHECKED)

pin: venv ## renew constraints.txt and those for the newest reactivex, the lowest versions and engines
	@for out in constraints constraints-next constraints-lowest constraints-engines; do \
		options="--extra dev --python-version 3.11"; \
		case $$out in \
			*-next) options="--extra next --python-version 3.11 --overrides tools/next.txt";; \
			*-lowest) options="--extra next --python-version 3.12 --resolution lowest-direct";; \
			*-engines) options="--extra engines --python-version 3.11";; \
		esac; \
		$(BIN)/uv pip compile pyproject.toml --quiet --universal --upgrade $$options \
			--no-annotate --no-header --output-file $$out.txt || exit 1; \
		echo "$$out.txt: $$(grep -c == $$out.txt) pins"; \
	done

clean: ## remove environments, caches and built documents
	@rm -rf .venv .venv-next .venv-312 .venv-313 .venv-engines .venv-vllm .browser .cluster build dist rx-backend-run
	@rm -rf .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# uv is quick, but knows nothing of the package index that pip may be configured for.
EVERYTHING := --editable '.[dev]' --constraint constraints.txt
.venv/.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
		echo "This needs Python 3.11 to 3.13, and $(PYTHON) is not one:" \
			"try make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@echo "== setting up .venv"
	@[ "$$(.venv/bin/python -V 2>&1)" = "$$($(PYTHON) -V)" ] || $(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip install $(PIP_FLAGS) --constraint constraints.txt uv
	@$(BIN)/uv pip install --quiet --python $(BIN)/python $(EVERYTHING) || \
		$(BIN)/python -m pip install $(PIP_FLAGS) $(EVERYTHING)
	@touch $@

# The pins are complete, so nothing is resolved here: resolving would bring aioreactive back,
# which holds reactivex at 4.x.
.venv-next/.stamp: .venv/.stamp pyproject.toml constraints-next.txt
	@echo "== setting up .venv-next"
	@$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-next
	@$(BIN)/uv pip install --quiet --no-deps --python $(NEXT)/python \
		--requirement constraints-next.txt --editable .
	@touch $@
