# One entry per chore; CI calls the same ones.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

# A few layers of EfficientNet-Lite0 from stem to head, 32 filters each: a few minutes on two CPU cores.
DEMO = efficientnet_lite0 --layers conv_stem,blocks.1.0.conv_pw,blocks.2.0.conv_pw,blocks.3.0.conv_pw,blocks.5.0.conv_pw,conv_head --filters 0-31 --size 112

.PHONY: demo test test-faults soak bench bench-quality bench-classes bench-scale bench-gallery lint types format clean

demo: $(VENV)/.installed
	$(BIN)/filterfarm run $(DEMO)

# Two tests at a time; the core that runs out of tests takes half of what the other has left. The summary lists skips.
test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# The slow rows of "What survives what" in tests/README.md; a few of each are in "make test".
test-faults: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m faults

# Half an hour of work, watched for leaks; SOAK_MINUTES=3 for a try.
soak: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m soak

# How fast the engine is here and the farm around it: 20 to 40 minutes. ARGS=--quick for a rough answer.
bench: $(VENV)/.installed-dev
	$(BIN)/python -m tests.benchmarks.speed $(ARGS)

# What jobs of up to a million tiles cost producer, collector and Redis: five minutes.
bench-scale: $(VENV)/.installed-dev
	$(BIN)/python -m tests.benchmarks.scale

# How fast the gallery of large jobs opens in Debian's chromium: two minutes.
bench-gallery: $(VENV)/.installed-dev
	$(BIN)/python -m tests.benchmarks.gallery

# Whether networks read the class of class pictures, and of Lucent's. ARGS="--classes 16 --every 2" for a try.
bench-classes: $(VENV)/.installed-dev build/lucent
	$(BIN)/python -m tests.benchmarks.classes $(ARGS)

# How good the pictures are, and against Lucent's: hours on two cores. ARGS="--every 6 --filters 8" for a try.
bench-quality: $(VENV)/.installed-dev build/lucent
	$(BIN)/python -m tests.benchmarks.quality $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.installed-dev
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build *.egg-info

# torch is large; pip's own time limit is for small packages on good lines.
$(VENV)/.installed: pyproject.toml $(wildcard workers/kernels/src/*.c)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "filterfarm needs Python 3.11 or newer; make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --timeout 120 -e '.[local]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --timeout 120 -e '.[local,dev]'
	touch $@

# Apart from our own packages and without its own requirements, which are of 2020: only what it imports.
build/lucent: | $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --target $@ --no-deps torch-lucent==0.1.8 kornia==0.4.1
	$(BIN)/python -m pip install --quiet --target $@ decorator ipython tqdm
