# `make run` and `make test` need Python 3.11 and make; the rest says what it installs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PROMPT ?= a red apple on a blue background
MINISTACK := .venv-ministack
AWSCLI := .venv-awscli
UV := .venv-uv
IMAGE_BASE := localhost/base:bookworm
DEBIAN := build/debian-packages
CHROMIUM := /usr/bin/chromium
AXE := build/axe-core/package/axe.min.js
AXE_VERSION := 4.14.1
OTHERS := beginnings or browser or chaos or emulators or families or image or infra

.PHONY: help run serve test quick beginnings families test-browser test-emulators infra test-image image image-base lock chaos histories lint lint-api check bench clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(VENV)/installed ## Installs into .venv and draws PROMPT through SQS, worker, S3 and presigned URL
	$(BIN)/darkroom invoke "$(PROMPT)" --out pictures

serve: $(VENV)/installed ## The HTTP API and the page on 127.0.0.1:8000, with a worker
	$(BIN)/darkroom serve --port 8000

# In four processes, for most tests wait more than they compute. Tests that draw with a real pipeline stay in one, for two
# such at a time slow each other; what takes longest begins first.
test: $(VENV)/installed ## All tests that need nothing but Python and make
	$(BIN)/pytest -n 4 --dist loadgroup --no-loadscope-reorder

quick: $(VENV)/installed ## All that needs no pipeline and waits for nothing long, in under a minute
	$(BIN)/pytest -n 5 --dist loadgroup --no-loadscope-reorder -m "not ($(OTHERS) or pipeline or slow)" \
		$(foreach that,engine families image chaos/test_engine.py work/test_path.py,--ignore tests/$(that)) # which import torch

beginnings: $(VENV)/installed ## Some fifty ways to begin, most of them wrong: what each says, and its exit status
	$(BIN)/pytest -n 3 tests/cli -m beginnings --ignore tests/cli/test_terminal.py
	$(BIN)/pytest tests/cli/test_terminal.py -m beginnings # where nothing else is busy: nothing may be still for 2 s

families: $(VENV)/installed build/torchao/installed /usr/bin/g++ ## Tiny pipelines of 65 classes through the engine, against diffusers' own pictures
	$(BIN)/pytest -n 2 tests/families -m "families or not families" -q

# For compiled forwards. Installs Debian's compiler where it is missing (as root).
/usr/bin/g++:
	apt-get update -qq && apt-get install -y -qq --no-install-recommends g++

# Beside the environment, not in it: where it is installed it prints lines of its own at every start.
build/torchao/installed: Makefile $(VENV)/installed
	$(BIN)/pip install --quiet --no-deps --target build/torchao torchao==0.18.0
	touch $@

# The page in Chromium, against darkroom serve. Installs Debian's chromium where it is missing (as root), and fetches
# axe-core from npm's registry into build/.
test-browser: $(VENV)/installed $(CHROMIUM) $(AXE) ## The page in Chromium, which it installs (root)
	$(BIN)/pytest tests/browser -m browser

$(CHROMIUM):
	apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core

$(AXE): Makefile
	mkdir -p build/axe-core
	cd build && npm pack --silent axe-core@$(AXE_VERSION) && tar -xzmf axe-core-$(AXE_VERSION).tgz -C axe-core

# Installs MiniStack, an AWS emulator that checks signatures and serves real races, into an environment of its own.
test-emulators: $(VENV)/installed $(MINISTACK)/installed ## Store and queue on MiniStack, which checks signatures
	$(BIN)/pytest tests -m "contract or emulators" --ministack $(MINISTACK)/bin/python

# The templates: linted, deployed on moto and MiniStack, their permissions held against what the handlers do.
infra: $(VENV)/installed $(MINISTACK)/installed $(AWSCLI)/installed ## The templates on two emulators
	$(BIN)/pytest tests/infra -m infra --ministack $(MINISTACK)/bin/python --awscli $(AWSCLI)/bin/aws

# Builds darkroom:latest with docker, podman or buildah, whichever works here; infra/image.sh lists what it takes.
image: ## Builds darkroom:latest
	infra/image.sh

# For machines that reach no container registry: a base image out of Debian packages, then make image BASE=$(IMAGE_BASE).
image-base: $(DEBIAN) ## A base image out of Debian packages, where no registry is reached
	infra/image-base.sh $(IMAGE_BASE)

# The newest releases that pyproject.toml allows, each with the hashes of its files. Say which changed in the commit.
lock: $(UV)/installed ## Resolves anew what the images install: infra/locked.txt, infra/locked-light.txt
	$(UV)/bin/uv pip compile pyproject.toml --extra engine --extra lambda --extra cli -c infra/constraints.txt \
		--universal --python-version 3.11 --generate-hashes --no-emit-package torch --upgrade --quiet \
		--custom-compile-command "make lock" --output-file infra/locked.txt
	$(UV)/bin/uv pip compile pyproject.toml --extra lambda -c infra/locked.txt \
		--universal --python-version 3.11 --generate-hashes --quiet \
		--custom-compile-command "make lock" --output-file infra/locked-light.txt

# Builds the image and runs its container, as root. Installs the Debian packages buildah and debootstrap where they are
# missing, and fetches AWS's runtime emulator out of the wheel of aws-sam-cli into build/.
test-image: $(VENV)/installed $(DEBIAN) ## Builds the image and runs its container (root)
	$(BIN)/pytest tests/image -m image -s -o faulthandler_timeout=600 # the build alone takes minutes

$(DEBIAN):
	command -v buildah && command -v debootstrap || \
		{ apt-get update -qq && apt-get install -y -qq --no-install-recommends buildah debootstrap; }
	mkdir -p build && touch $@

# Minutes: hundreds of rounds of tasks that meet, stop and go, a worker's memory over 500 tasks,
# and three workers under kills and injected faults. With SEED or TASKS only the last, with these.
chaos: $(VENV)/installed ## Minutes of kills and injected faults; SEED=3 TASKS=300 for the fleet alone
ifeq ($(SEED)$(TASKS),)
	$(BIN)/pytest tests/chaos -m chaos -s
else
	$(BIN)/python -m tests.chaos --seed $(or $(SEED),1) --tasks $(or $(TASKS),300)
endif

# No engine, no server and no sleep: each takes hundredths of a second. After an hour no other one is begun.
histories: $(VENV)/installed ## An hour of random histories at most; COUNT=2000 SEED=1 for so many
	$(BIN)/python -m tests.chaos.histories --count $(or $(COUNT),100000) --seed $(or $(SEED),1)

lint: $(VENV)/installed ## ruff, import contracts, mypy --strict
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

# A second opinion on the API's description; needs Node, whose npx fetches the linter. (The tests have rules of their own.)
lint-api: $(VENV)/installed ## The API description, by a linter from npm
	mkdir -p build
	$(BIN)/python -c 'import json; from handler.contract.openapi import document; print(json.dumps(document(), indent=1))' > build/openapi.json
	REDOCLY_TELEMETRY=off npx --yes @redocly/cli@2.77.0 lint build/openapi.json

check: lint test ## What CI runs first

bench: $(VENV)/installed ## All benchmarks, or ONLY=startup
	$(BIN)/python -m tests.benchmarks $(ONLY)

# Bytecode is written even where the environment says not to: without it every start takes three times as long.
$(VENV)/installed: pyproject.toml infra/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c infra/constraints.txt -e '.[engine,cli,local,lambda,dev]'
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m compileall -q handler
	touch $@

$(MINISTACK)/installed: Makefile
	$(PYTHON) -m venv $(MINISTACK)
	$(MINISTACK)/bin/pip install --quiet ministack==1.5.33
	touch $@

# The commands of infra/README.md are run with the real command line, which pins its botocore and so lives apart.
$(AWSCLI)/installed: Makefile
	$(PYTHON) -m venv $(AWSCLI)
	$(AWSCLI)/bin/pip install --quiet awscli==1.46.3
	touch $@

$(UV)/installed: Makefile
	$(PYTHON) -m venv $(UV)
	$(UV)/bin/pip install --quiet uv==0.13.9
	touch $@

clean: ## Removes environments, pictures and build outputs
	rm -rf $(VENV) $(MINISTACK) $(AWSCLI) $(UV) pictures build *.egg-info
