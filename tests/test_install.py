"""Imports stay lazy, packages are ours, and every registry string leads to a class."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import train
from agents.registry import AGENTS

HEAVY = ("dm_control", "mujoco", "theseus", "matplotlib", "tensorboard", "imageio_ffmpeg")


def python(code: str, *path: Path) -> subprocess.CompletedProcess[str]:
    setup = f"import sys; sys.path[:0] = {[str(p) for p in path]!r}\n"
    return subprocess.run([sys.executable, "-c", setup + code], cwd=train.ROOT, capture_output=True, text=True)


def test_no_simulator_and_no_heavy_library_is_imported_before_it_is_used() -> None:
    code = f"""
import agents.registry, agents.difftop_rl, envs, difftop.run.session, difftop.qp, train
for name in agents.registry.AGENTS:
    agents.registry.config_class(name)
envs.list_envs()
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    done = python(code)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_another_package_called_agents_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "__init__.py").write_text("")
    code = f"import runpy; sys.path.insert(0, {str(tmp_path)!r}); runpy.run_path('train.py')['guard_packages']()"
    done = python(code)
    assert done.returncode == 1
    assert f"`import agents` finds {tmp_path / 'agents'} instead of {train.ROOT / 'agents'}" in done.stderr
    assert python("import runpy; runpy.run_path('train.py')['guard_packages']()", train.ROOT).returncode == 0


def test_registry_strings_lead_to_classes() -> None:
    for name, entry in AGENTS.items():
        module = import_module(entry.module)
        config = getattr(module, entry.config)
        assert config().name == name
        assert hasattr(getattr(module, entry.agent), "update" if entry.kind == "rl" else "loss")


def test_files_and_functions_stay_small() -> None:
    files = [p for room in ("difftop", "agents", "envs") for p in (train.ROOT / room).rglob("*.py")] + [train.ROOT / "train.py"]
    long = {str(p.relative_to(train.ROOT)): n for p in files if (n := len(p.read_text().splitlines())) > 400}
    assert long == {}
