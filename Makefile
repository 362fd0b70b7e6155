# make setup | sims | browser | test | slurm | ray | train | demo-il | lint | clean        PYTHON=python3.11 picks the interpreter of a new environment
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
APT := python3-venv libegl1 libgl1 g++
export PIP_ROOT_USER_ACTION := ignore

.PHONY: setup sims browser test slow slurm ray lint train demo-il clean system

setup: .venv/done

# EGL draws pixels and videos; g++ compiles the tape (docs/capture.md); python3-venv is a package of its own on Debian. Root installs what is missing, others are told.
system:
	@sh tools/system_packages.sh $(APT)

# torch first: theseus-ai's build imports it. --no-deps: theseus-ai lists packages that we don't use and that need a compiler, dm-control
# one that has no wheel for Python 3.13, where the extra leaves dm-control out; elsewhere that line finds it installed.
.venv/done: constraints.txt pyproject.toml setup.py tools/system_packages.sh
	@$(MAKE) --no-print-directory system
	$(PYTHON) -m venv .venv
	$(PIP) torch numpy scipy setuptools wheel
	$(PIP) --no-build-isolation --no-deps theseus-ai torchlie torchkin urdf-parser-py semantic-version lxml pyyaml
	$(PIP) --no-warn-conflicts --no-build-isolation -e '.[dmc,gym,metaworld,test]'
	$(PIP) --no-deps dm-control
	@touch $@

# The manipulation suites. robosuite without its dependencies: of those, pynput needs a compiler (evdev), and mink and qpsolvers
# belong to a controller that isn't used. OpenCV, which it does need, wants libglib; ManiSkill wants a Vulkan device, and on Python 3.13
# comes without its motion planner. gym-pusht without pygame, in whose place Gymnasium's pygame-ce is.
sims: .venv/sims

.venv/sims: .venv/done tools/vulkan.sh
	@sh tools/system_packages.sh $(APT) libglib2.0-0
	@sh tools/vulkan.sh
	$(PIP) --no-warn-conflicts --no-build-isolation -e '.[maniskill]' numba opencv-python termcolor pygame-ce pymunk shapely
	$(PIP) --no-deps mani-skill robosuite gym-pusht
	@touch $@

# For the test that opens a report in headless Chromium; without one it is skipped.
browser:
	@sh tools/system_packages.sh chromium

test: .venv/done
	$(BIN)/python -m pytest -n 2 -m 'not slow'

slow: .venv/done
	$(BIN)/python -m pytest -n 2 -m slow

# A Slurm of one node, which the test starts and stops; root installs it, others need it there.
slurm: .venv/done
	@sh tools/system_packages.sh slurmctld slurmd slurm-client munge
	$(PIP) hydra-submitit-launcher
	$(BIN)/python -m pytest -m slow -rs tests/cluster/test_slurm.py

# A Ray of two nodes on this machine. Without dependencies: the launcher asks for cloudpickle 2, which joblib no longer runs with, and
# works with 3; boto3 is for Amazon's clusters.
ray: .venv/done
	$(PIP) 'ray[default]'
	$(PIP) --no-deps hydra-ray-launcher
	$(BIN)/python -m pytest -m slow -rs tests/cluster/test_ray.py

lint: .venv/done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

train: .venv/done
	$(BIN)/python train.py preset=cpu env=dmc/cartpole-swingup run.frames=24000

# LeTO on a Meta-World task, from no data at all. Its products are small: on a machine with other work two threads only wait for each other.
demo-il: .venv/done
	$(BIN)/python train.py agent=leto env=metaworld/button-press-topdown run.grad_steps=3000 run.eval_every=1000 threads=1

clean:
	rm -rf .venv build *.egg-info
