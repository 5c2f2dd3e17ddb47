# `make demo`, `make check` and `make test` set the environment up in .venv if it is not there yet.
SHELL := /bin/bash
VENV := .venv
PYTHON := $(VENV)/bin/python
APT := libopencv-dev libturbojpeg0-dev pkg-config g++

.PHONY: setup demo check test browser lint bench chaos clean

setup: $(VENV)/.installed

# torch first: everything else then resolves and builds against it. FFCV last, and optional: it compiles against $(APT).
$(VENV)/.installed: pyproject.toml
	@test -x $(PYTHON) || python3 -m venv $(VENV)
	@echo "installing torch (some minutes, several GB)"
	@$(PYTHON) -m pip install -q --disable-pip-version-check torch torchvision
	@echo "installing infvit with its experiments"
	@$(PYTHON) -m pip install -q --disable-pip-version-check -e '.[experiments,dev]'
	@if $(PYTHON) -c 'import ffcv' 2>/dev/null; then true; \
	 elif pkg-config --exists opencv4 libturbojpeg 2>/dev/null && command -v g++ >/dev/null; then $(MAKE) -s ffcv; \
	 elif test "$$(id -u)" = 0 && command -v apt-get >/dev/null; then \
	   echo "installing $(APT)"; \
	   (apt-get update -qq && apt-get install -y -qq $(APT)) >$(VENV)/apt.log 2>&1 && $(MAKE) -s ffcv \
	   || { tail -3 $(VENV)/apt.log; $(MAKE) -s without-ffcv; }; \
	 elif command -v apt-get >/dev/null && sudo -n true 2>/dev/null; then \
	   echo "installing $(APT)"; \
	   (sudo -n apt-get update -qq && sudo -n apt-get install -y -qq $(APT)) >$(VENV)/apt.log 2>&1 && $(MAKE) -s ffcv \
	   || { tail -3 $(VENV)/apt.log; $(MAKE) -s without-ffcv; }; \
	 else $(MAKE) -s without-ffcv; fi
	@touch $@

.PHONY: ffcv without-ffcv
ffcv:
	@echo "installing FFCV"
	@$(PYTHON) -m pip install -q --disable-pip-version-check 'ffcv>=1.0.2' >$(VENV)/ffcv.log 2>&1 \
	|| { tail -3 $(VENV)/ffcv.log; $(MAKE) -s without-ffcv; }

without-ffcv:
	@echo "FFCV is not installed; the torch loader is used instead. To install FFCV:"
	@echo "  sudo apt-get install -y $(APT) && $(PYTHON) -m pip install ffcv"

demo: setup
	@if $(PYTHON) -c 'import ffcv' 2>/dev/null; then loader=ffcv; else loader=torch; fi; \
	set -x; $(PYTHON) train.py -m experiment=digits model=vit,infvit,linear_infvit seed=0,1 data/loader=$$loader

# For every change: the linters and the fast tests, 80 seconds on two cores.
check: lint
	@OMP_NUM_THREADS=1 $(PYTHON) -m pytest -m "not slow" --numprocesses auto --maxprocesses 4 --dist loadfile

# The whole suite, a file of tests per process, and two processes a core, because many slow tests wait. One thread each:
# the tests' tensors are small, and threads that wait for each other on a busy machine take minutes.
test: setup browser
	@OMP_NUM_THREADS=1 $(PYTHON) -m pytest --numprocesses $$((2 * $$(nproc))) --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# The pages are tested in Chromium; without it those tests are skipped with a message.
browser:
	@if command -v chromium chromium-browser google-chrome >/dev/null; then true; \
	 elif command -v apt-get >/dev/null && { test "$$(id -u)" = 0 || sudo -n true 2>/dev/null; }; then \
	   echo "installing chromium"; \
	   as_root=$$(test "$$(id -u)" = 0 || echo "sudo -n"); \
	   ($$as_root apt-get update -qq && $$as_root apt-get install -y -qq chromium) \
	   >$(VENV)/chromium.log 2>&1 || tail -3 $(VENV)/chromium.log; \
	 else echo "Chromium is not installed, so the tests of the pages are skipped. To install it: sudo apt-get install -y chromium"; fi

lint: setup
	@$(PYTHON) -m ruff check . && $(PYTHON) -m ruff format --check . && $(PYTHON) -m mypy && $(VENV)/bin/lint-imports

# Measurements that are too long for a test, about 55 minutes on two cores: the layer and the whole model against their naive
# twins, then the tables of time, memory and resolution of infvit/measure/README.md, written to runs/eval/.
bench: setup
	@$(PYTHON) -m tests.bench_twins
	$(PYTHON) eval.py eval=efficiency 'resolutions=[224,512,1024]' rounds=5
	$(PYTHON) eval.py eval=efficiency 'models=[linear_infvit]' 'resolutions=[512,1024,2048,4096]' 'passes=[forward]' rounds=3
	for option in precision=fp32 precision=bf16 compile=true; do \
	  $(PYTHON) eval.py eval=efficiency 'models=[linear_infvit]' 'resolutions=[1024]' 'passes=[forward]' rounds=5 $$option || exit 1; \
	done
	$(PYTHON) eval.py eval=highres 'resolution=[512,1024,2048,4096]' 'ways=[dense,chunked,streamed,parallel]'
	$(PYTHON) eval.py eval=highres resolution=9216 'ways=[chunked,streamed]'
	$(PYTHON) eval.py eval=highres resolution=4096 'ways=[training]'
	$(PYTHON) eval.py eval=highres 'models=[vit,vit_unfused,infvit]' 'ways=[dense]' 'resolution=[2048,4096,9216]' time_limit=60
	$(PYTHON) eval.py eval=highres resolution=32768 'ways=[streamed]' size.depth=2 size.dim=512 size.heads=8

# Breaks real runs on purpose: kills, full disks, files that vanish, ranks that hang, and SLURM where it is installed (as root,
# with slurm-wlm and munge). Prints the table of tests/chaos/README.md.
chaos: setup
	@OMP_NUM_THREADS=1 $(PYTHON) -m tests.chaos

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
