# make setup | test | train | lint | clean        PYTHON=python3.11 picks the interpreter of a new environment
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
APT := python3-venv libegl1 libgl1
export PIP_ROOT_USER_ACTION := ignore

.PHONY: setup test slow lint train clean system

setup: .venv/done

# EGL draws pixels and videos; python3-venv is a package of its own on Debian. Root installs what is missing, others are told.
system:
	@sh tools/system_packages.sh $(APT)

# torch first: theseus-ai's build imports it. --no-deps: theseus-ai lists packages that we don't use and that don't build here.
.venv/done: constraints.txt setup.cfg pyproject.toml tools/system_packages.sh
	@$(MAKE) --no-print-directory system
	$(PYTHON) -m venv .venv
	$(PIP) torch numpy scipy setuptools wheel
	$(PIP) --no-build-isolation --no-deps theseus-ai torchlie torchkin urdf-parser-py semantic-version lxml pyyaml
	$(PIP) --no-warn-conflicts --no-build-isolation -e '.[dmc,test]'
	@touch $@

test: .venv/done
	$(BIN)/python -m pytest -n 2 -m 'not slow'

slow: .venv/done
	$(BIN)/python -m pytest -n 2 -m slow

lint: .venv/done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

train: .venv/done
	$(BIN)/python train.py preset=cpu env=dmc/cartpole-swingup run.frames=40000

clean:
	rm -rf .venv build *.egg-info
