# Thin: build.py and the tools of .venv do the work. `make` alone shows what there is.
.DEFAULT_GOAL := help
.PHONY: help image test test-all test-arm64 test-unit bench-recipe bench-distribute bench-publish bench-launch bench-model mutants inventories check lint dockerfiles shell types workflows test-gpu lab golden record reference schema \
        docs docs-tools read test-docs pictures recordings lock \
        engine-up engine-down ci-plan login logout propose release-notes source-archive release \
        clean venv

BIN := .venv/bin
PYTEST := $(BIN)/python -P -m pytest
VARIANT ?=
IMAGE ?=
# What workflows hand over comes from the environment, and stays a word of the shell: make would
# expand what is in it.
export ONLY TO VERSION NEWS
# Tests wait for nodes as much as they compute. Which tests share a process, and which go first, is
# said in tests/conftest.py.
AT_ONCE := --numprocesses=2 --dist=loadscope --no-loadscope-reorder
QUICK := -m 'not thorough'
TESTS := $(wildcard tests/unit tests/golden tests/lab)

##@ Use

help: ## Show this
	@awk -F ':.*## ' '/^##@ / { printf "\n%s:\n", substr($$0, 5) } \
	    /^[a-z0-9-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 } \
	    END { print "\nAll commands of the program: ./build.py --help" }' Makefile

image: ## Build and prove the default variants (VARIANT=NAME for another one)
	./build.py image $(VARIANT)

engine-up: ## Start the private Docker Engine
	python3 build.py engine up

engine-down: ## Stop it (`./build.py engine down --purge` removes its images too)
	python3 build.py engine down

##@ Test

test: check ## Lint, types, then the tests but the thorough ones (sets up an engine where there is none)
	$(MAKE) test-docs ONCE=1
	$(PYTEST) $(AT_ONCE) $(QUICK) $(TESTS)

test-all: check test-docs ## Lint, types, then all tests: each way of each fault, each kind of node, arm64
	$(PYTEST) $(AT_ONCE) $(TESTS)

test-arm64: venv ## The tests that build whole images for arm64; for a machine where that is native
	$(PYTEST) $(AT_ONCE) -m arm64 $(TESTS)

test-unit: venv ## The tests that need no Docker
	$(PYTEST) $(AT_ONCE) tests/unit

lab: venv ## The tests on real parts but the thorough ones: engine, registry, nodes
	$(PYTEST) $(AT_ONCE) $(QUICK) tests/lab

test-gpu: venv ## The tests on this machine's NVIDIA GPUs (IMAGE=NAME of the store, OUT=DIR for logs and figures)
	GPU_IMAGE='$(IMAGE)' GPU_OUT='$(OUT)' $(PYTEST) -s tests/gpu

##@ Measure

bench-recipe: venv ## Measure the lock's verbs and the lab's builds of ds4-flash
	$(PYTEST) -q tests/lab/bench_recipe.py

bench-distribute: venv ## Measure `distribute` beside what people use instead (ROUNDS=3; about half an hour)
	$(PYTEST) -q tests/lab/bench_distribute.py

bench-publish: venv ## Measure `publish` beside `docker push`
	$(PYTEST) -q -s tests/lab/bench_publish.py

bench-launch: venv ## Measure `launch` until it is ready, on the lab's four nodes (ROUNDS=3)
	$(PYTEST) -q -s tests/lab/bench_launch.py

bench-model: venv ## Measure `model push` beside rsync, on the lab's four nodes (SIZE=2000 MB, ROUNDS=3; a quarter of an hour)
	$(PYTEST) -q -s tests/lab/bench_model.py

mutants: venv ## Put faults into a good image and see each refused (IMAGE=NAME: one of the store)
	$(if $(IMAGE),$(BIN)/python -P -m tests.lab.mutants --image $(IMAGE),$(PYTEST) -q -s tests/lab/test_mutants.py)

inventories: venv ## Read the real wheels of tests/real anew (downloads about 10 GB, one wheel at a time)
	$(BIN)/python -P -m tests.real.inventory

##@ Read the code

check: lint types dockerfiles shell workflows ## All that reads the code and runs none

lint: venv ## Python style, and the way that imports go
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYTHONPATH=. $(BIN)/lint-imports --no-cache

types: venv ## Python types, strict
	$(BIN)/mypy

dockerfiles: venv ## Lint of every Dockerfile
	find images sparkimage tests -name Dockerfile -print0 | xargs -0 -r $(BIN)/hadolint

# There is no shellcheck wheel for aarch64: there it is Debian's package.
shell: venv ## Lint of every shell script
	find images sparkimage tests .ci -type f '(' -name '*.sh' -o -path .ci/run ')' -print0 \
	    | PATH="$(CURDIR)/$(BIN):$$PATH" xargs -0 -r shellcheck

workflows: venv ## Lint of .github: actionlint, and zizmor with all that it would rather not see
	PATH="$(CURDIR)/$(BIN):$$PATH" actionlint -pyflakes= .github/workflows/*.yml
	$(BIN)/zizmor --offline --pedantic --strict-collection --no-progress --quiet .

##@ Write what the program writes

golden: venv ## Record the golden outputs anew; read the difference before you commit it
	GOLDEN=write $(PYTEST) tests/golden tests/unit/test_verify.py

record: venv ## Record anew what real nodes say to launch's scripts, for the nodes that stand in for them
	RECORD=write $(PYTEST) tests/lab/test_launch.py -k 'four_nodes and nodes]'

reference: venv ## Write the pages of docs/ that the program makes: commands, files, exit codes, failures
	$(BIN)/python -P -m tools.reference

schema: reference

pictures: venv ## Draw the pictures of docs/ (IMAGE=NAME: with the layers of an image of the store)
	$(BIN)/python -P -m tools.pictures $(IMAGE)

recordings: docs-tools ## Draw what commands print in the lab, for docs/ (IMAGE=NAME: and the report of an image)
	$(PYTEST) -q tests/lab/record_terminals.py
	$(if $(IMAGE),./build.py report $(IMAGE) --output out/report.html)
	$(if $(IMAGE),$(DOCS)/bin/python -P tools/report_picture.py out/report.html "$$(command -v chromium)")

DOCS := .venv-docs

##@ The site

docs: docs-tools ## Build the site into out/site, each link checked; to read it: make read
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict

read: docs ## Serve the site at http://127.0.0.1:8008
	$(DOCS)/bin/python -m http.server --bind 127.0.0.1 --directory out/site 8008

test-docs: docs ## Read every page of the site in headless Chromium, on a desk and on a phone
	PYTHONPATH=. $(DOCS)/bin/python -P -m pytest --confcutdir=tests/docs $(if $(ONCE),$(QUICK)) tests/docs

docs-tools: $(DOCS)/stamp

# What builds and reads the site is no part of what the program runs with.
$(DOCS)/stamp: docs/requirements.txt | venv
	$(BIN)/uv venv --quiet --clear --no-config $(DOCS)
	$(BIN)/uv pip install --quiet --no-deps --only-binary=:all: --require-hashes \
	    --python $(DOCS)/bin/python --requirement docs/requirements.txt
	touch $@

lock: venv ## Resolve the development tools anew (requirements.txt); `./build.py lock` does the matrix
	for folder in . docs; do \
	    $(BIN)/uv pip compile --quiet --upgrade --generate-hashes --no-emit-index-url --universal \
	        --python-version 3.11 --custom-compile-command 'make lock' \
	        --output-file $$folder/requirements.txt $$folder/requirements.in || exit; \
	done

##@ Release and CI

ci-plan: ## A job for each resolved variant, as a step's output (ONLY=GLOB: for these, or none)
	@jobs=$$(python3 build.py --matrix $${ONLY:+--only "$$ONLY"} --print github) \
	    && printf 'matrix=%s\n' "$$jobs"

login: ## Log in to the registry of TO=REGISTRY/REPOSITORY, as REGISTRY_USER with REGISTRY_TOKEN
	@test -n "$$TO" || { echo 'error: TO is not set (REGISTRY/REPOSITORY)' >&2; exit 2; }
	@printf '%s' "$$REGISTRY_TOKEN" \
	    | docker login --username "$$REGISTRY_USER" --password-stdin "$${TO%%/*}"

logout: ## Forget that login
	@docker logout "$${TO%%/*}"

propose: venv ## Keep one issue that says what is newer (NEWS=FILE, of `lock --outdated --json`), by gh
	@$(BIN)/python -P -m tools.propose "$$NEWS"

release-notes: venv ## Write the changelog's section of VERSION to out/
	@$(BIN)/python -P -m tools.release notes "$$VERSION"

source-archive: venv ## Write the source archive of VERSION's tag to out/; the same bytes each time
	@$(BIN)/python -P -m tools.release archive "$$VERSION"

release: release-notes source-archive ## Make VERSION's release on GitHub of both, by gh
	@$(BIN)/python -P -m tools.release publish "$$VERSION"

clean: ## Remove what tools left in this folder, .venv too; images and engine stay
	rm -rf .venv .venv-docs .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

venv:
	@python3 -c 'import build; build.prepare()'
