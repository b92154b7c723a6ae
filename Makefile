# make env    the environment, in .venv, and the small model, in the user's cache
# make test   lint, types and tests: no network, no key, no GPU; WORKERS=N sets the processes (2)
# make test-fast   the quick tests alone, in a minute
# make test-browser   the report and the playground in Chromium, by keyboard; needs Chromium
# make test-peers   real harnesses against `userlm serve`, each in an environment of its own; PEERS="openai mlflow" chooses
# make docs   the documentation as a site, in site/; fails on a broken link
# make size   how large the code is, in tokens
# make demo   from sample logs to a report, in a few minutes on a CPU

PYTHON ?= python3
BIN := .venv/bin
WORKERS ?= 2
# What is compiled once is kept, also where the environment forbids it: tests start many processes.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.PHONY: env test test-fast test-browser test-peers demo docs lint size clean

env: .venv/.ready
ifneq ($(filter env,$(MAKECMDGOALS)),)
	@echo "ready: run '. .venv/bin/activate', then 'userlm chat', or 'userlm --help' for all commands"
endif

# uv when it is there, else pip. uv is handed the folders of wheels that pip is told of.
.venv/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "userlm needs Python 3.11 or newer; say which with: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@{ if command -v uv >/dev/null; then \
	  export UV_FIND_LINKS="$${PIP_FIND_LINKS:-}"; \
	  uv venv --quiet --allow-existing --python $(PYTHON) .venv && \
	  uv pip install --python $(BIN)/python -c constraints.txt -e '.[dev]'; \
	else \
	  echo "installing into .venv (about 1.2 GB; a minute or two)"; \
	  $(PYTHON) -m venv .venv && $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'; \
	fi; } || { echo "the environment could not be made: see above; it needs the package index (or" \
	  "PIP_FIND_LINKS), about 2 GB of disk and a folder to write to; then run make $(MAKECMDGOALS) again"; exit 1; }
	@$(BIN)/userlm fetch small || echo "going on without the small model"
	@touch $@

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(PYTEST)

test-fast: env
	$(PYTEST) -m "not slow"

# Not part of `make test`, which needs no browser. The browser is the system's, not one of pip's.
test-browser: .venv/.browser
	$(BIN)/python -m pytest tests/browser

# Not part of `make test`: it installs what it runs, into .peers, when it is first needed.
test-peers: env
	$(BIN)/python tests/peers/run.py $(PEERS)

docs: .venv/.docs
	$(BIN)/python docs/site_pages.py
	$(BIN)/zensical build --strict --clean

# An extra of pyproject.toml, installed when it is first needed.
.venv/.browser .venv/.docs: .venv/.%: .venv/.ready
	@{ if command -v uv >/dev/null; then \
	  UV_FIND_LINKS="$${PIP_FIND_LINKS:-}" uv pip install --python $(BIN)/python -c constraints.txt -e '.[$*]'; \
	else \
	  $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$*]'; \
	fi; } || { echo "the extra $* could not be installed: see above"; exit 1; }
	@touch $@

demo: env
	$(BIN)/userlm demo

# Code tokens, tokens a line, and what is too long. Tokens count, not lines.
size: env
	$(BIN)/python bench/size.py

clean:
	rm -rf .venv .peers runs build site .cache
