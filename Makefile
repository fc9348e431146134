# make run: set up and run the demo.  make test | lint | soak | bench | zoo | notebooks.  PYTHON: the interpreter (3.10 or newer).
PYTHON ?= python3
PY = .venv/bin/python

.PHONY: run setup test lint soak bench zoo peers notebooks clean
.DEFAULT_GOAL := run

run: .venv/ready
	$(PY) -m src.run experiment=demo

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed; set PYTHON=...") if sys.version_info < (3, 10) else None'
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check torch -c constraints.txt
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps pytorchcv  # it names torchvision
	touch $@

test: .venv/ready  # a test that hangs says where after 200 s or, if it is no run that hangs, is ended after 240
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 LONGEST_RUN=200 $(PY) -m pytest -n 2 --dist worksteal \
		-o faulthandler_timeout=240 -o faulthandler_exit_on_timeout=true

lint: .venv/ready
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

soak: .venv/ready
	OMP_NUM_THREADS=1 $(PY) -m pytest -m soak -s

bench: .venv/ready
	$(PY) -m experiments.bench

zoo: .venv/ready .venv/zoo
	PYTHONPATH=.venv/zoo OMP_NUM_THREADS=1 $(PY) -m experiments.zoo --pruning

.venv/zoo: .venv/ready  # torchvision is built for another torch: it stays out of the environment
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --target $@ torchvision==0.29.1

peers: .venv/ready .venv/zoo .venv/peers/modelopt
	for network in vgg8 resnet20; do for cost in ours usual; do PYTHONPATH=.venv/peers:.venv/zoo $(PY) -m experiments.peers \
	  --network $$network --cost $$cost || exit 1; done; done

.venv/peers/modelopt: .venv/ready  # its requirements name torchvision and newer versions than it works with
	$(PY) -m pip install --quiet --disable-pip-version-check --target .venv/peers huggingface_hub==2.4.0
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --target .venv/peers nvidia-modelopt==0.47.0 \
	  torchprofile==0.0.4 pulp==3.3.2 regex==2026.11.19 nvidia-ml-py==13.615.71

notebooks: .venv/ready
	OMP_NUM_THREADS=1 $(PY) tests/notebook_runner.py

clean:
	rm -rf .venv runs report
