"""What an installation brings: a wheel with everything in it, metadata in step with the pins, and imports that stay lazy."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import train
from agents.registry import AGENTS, config_class
from difftop import command
from difftop.run.config_folder import config_folder

HEAVY = ("dm_control", "mujoco", "theseus", "matplotlib", "tensorboard", "imageio_ffmpeg")
PACKAGES = ("difftop", "agents", "envs")
SOURCE = (*PACKAGES, "configs", "pyproject.toml", "setup.py", "setup.cfg", "MANIFEST.in", "README.md", "LICENSE", "train.py")
PROJECT: dict[str, Any] = tomllib.loads((train.ROOT / "pyproject.toml").read_text())
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
PYTHONS = ("3.11", "3.12", "3.13")


def python(code: str, *path: Path, cwd: Path = train.ROOT) -> subprocess.CompletedProcess[str]:
    setup = f"import sys; sys.path[:0] = {[str(p) for p in path]!r}\n"
    return subprocess.run([sys.executable, "-c", setup + code], cwd=cwd, capture_output=True, text=True, timeout=300)


def copied(folder: Path) -> Path:
    """A copy of what a package is built from, so that nothing is left in the source tree and nothing old is taken from it."""
    folder.mkdir()
    for name in SOURCE:
        if (train.ROOT / name).is_dir():
            shutil.copytree(train.ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(train.ROOT / name, folder)
    return folder


def built(source: Path, kind: str, out: Path) -> Path:
    """The file that setuptools builds; `kind` is wheel, sdist or editable. Needs no network."""
    out.mkdir(exist_ok=True)
    done = python(f"from setuptools import build_meta; print('made', build_meta.build_{kind}({str(out)!r}))", cwd=source)
    assert done.returncode == 0, done.stdout + done.stderr
    return out / done.stdout.rpartition("made ")[2].strip()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    return built(copied(folder / "source"), "wheel", folder / "dist")


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """A folder as site-packages is after `pip install difftop-*.whl`."""
    site = wheel.parent / "site"
    zipfile.ZipFile(wheel).extractall(site)
    return site


def contents(wheel: Path) -> set[str]:
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


def expected_contents() -> set[str]:
    files = {path for package in PACKAGES for path in (train.ROOT / package).rglob("*") if path.is_file()}
    ours = {str(path.relative_to(train.ROOT)) for path in files if path.suffix != ".pyc"}
    return ours | {f"difftop/{path.relative_to(train.ROOT)}" for path in (train.ROOT / "configs").rglob("*.yaml")}


def test_the_wheel_holds_every_file_of_the_packages_and_every_config(wheel: Path) -> None:
    assert contents(wheel) == expected_contents()
    assert {"difftop/command.py", "difftop/configs/config.yaml", "agents/registry.py", "envs/__init__.py"} <= contents(wheel)


def test_a_wheel_made_from_the_source_package_is_the_same(wheel: Path, tmp_path: Path) -> None:
    shutil.unpack_archive(built(copied(tmp_path / "source"), "sdist", tmp_path / "dist"), tmp_path)
    (unpacked,) = tmp_path.glob("difftop-*")
    assert contents(built(unpacked, "wheel", tmp_path / "again")) == contents(wheel)


def test_an_editable_install_leads_to_the_source_tree_and_copies_nothing(tmp_path: Path) -> None:
    source = copied(tmp_path / "source")
    with zipfile.ZipFile(built(source, "editable", tmp_path / "dist")) as archive:
        files = {name: archive.read(name).decode() for name in archive.namelist() if ".dist-info/" not in name}
    assert all(name.startswith("__editable__") for name in files)
    assert all(repr(str(source / package)) in "".join(files.values()) for package in PACKAGES)


def test_the_wheel_s_metadata(wheel: Path) -> None:
    (info,) = metadata.distributions(path=[str(wheel)])
    project = PROJECT["project"]
    assert info.version == python("import difftop; print(difftop.__version__)", train.ROOT).stdout.strip()
    assert info.metadata["License-Expression"] == "MIT" and info.metadata["Requires-Python"] == project["requires-python"]
    assert "# difftop" in (info.metadata.get_payload() or "")
    assert [(e.group, e.name, e.value) for e in info.entry_points] == [
        ("console_scripts", "difftop", "difftop.command:run_command")
    ]
    assert set(info.metadata.get_all("Provides-Extra") or ()) == set(EXTRAS)


def test_the_command_works_where_only_the_wheel_is(installed: Path, tmp_path: Path) -> None:
    code = """
import difftop.command, agents, envs
from difftop.run.config_folder import config_folder
print(difftop.__file__, agents.__file__, envs.__file__, config_folder())
sys.argv[1:] = ["--help"]
difftop.command.run_command()
"""
    done = python(code, installed, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[:4] == [
        *(str(installed / name / "__init__.py") for name in PACKAGES),
        str(installed / "difftop" / "configs"),
    ]
    assert all(name in done.stdout for name in ("difftop_rl", "leto", "mode="))


def test_config_folder(tmp_path: Path) -> None:
    assert config_folder() == train.ROOT / "configs"
    package = tmp_path / "difftop"
    package.mkdir()
    with pytest.raises(FileNotFoundError, match="install difftop again"):
        config_folder(package)
    for folder in (tmp_path / "configs", package / "configs"):  # a wheel's own copy goes before a neighbour's folder of that name
        folder.mkdir()
        (folder / "config.yaml").write_text("")
        assert config_folder(package) == folder


def pins() -> dict[str, list[Requirement]]:
    lines = (train.ROOT / "constraints.txt").read_text().splitlines()
    found: dict[str, list[Requirement]] = {}
    for line in lines:
        if line and not line.startswith("#"):
            found.setdefault(canonicalize_name(Requirement(line).name), []).append(Requirement(line))
    return found


def holds(requirement: Requirement, version: str) -> bool:
    """Whether the requirement applies on Python `version`."""
    return requirement.marker is None or requirement.marker.evaluate({"python_version": version, "extra": ""})


@pytest.mark.parametrize("version", PYTHONS)
def test_every_pin_is_allowed_by_the_metadata(version: str) -> None:
    listed = [*PROJECT["project"]["dependencies"], *(line for name in EXTRAS if name != "bench" for line in EXTRAS[name])]
    wrong = []
    for line in listed:
        for pin in pins().get(canonicalize_name(Requirement(line).name), []):
            (exact,) = pin.specifier
            if (
                holds(pin, version)
                and holds(Requirement(line), version)
                and not Requirement(line).specifier.contains(exact.version)
            ):
                wrong.append(f"{pin} does not fit {line}")
    assert wrong == []
    numpy = [pin for pin in pins()["numpy"] if holds(pin, version)]
    assert len(numpy) == 1  # no wheel of NumPy 1 for Python 3.13


def test_all_is_every_simulator_and_the_makefile_names_extras() -> None:
    (everything,) = map(Requirement, EXTRAS["all"])
    assert everything.extras == set(EXTRAS) - {"all", "sweep", "test", "bench"}
    makefile = (train.ROOT / "Makefile").read_text()
    named = {name for group in re.findall(r"-e '\.\[(.*?)\]'", makefile) for name in group.split(",")}
    assert {"dmc", "gym", "metaworld", "test"} <= named <= set(EXTRAS)


LEFT_OUT = {
    "dm-control": {"labmaze"},
    "robosuite": {"mink", "pynput", "pytest", "qpsolvers"},
    "gym-pusht": {"pygame"},
    "mani-skill": set[str](),
    "theseus-ai": {"pybind11", "pytest", "scikit-sparse"},
}
ADDED = {
    "gym-pusht": {"pygame-ce"},  # in pygame's place
    "theseus-ai": {"lxml", "pyyaml", "torch", "urdf-parser-py"},  # of its own source or of torchkin's, which doesn't say so
}


def required(lines: list[str], version: str = "3.11") -> set[str]:
    """Names of the packages, those of extras left out."""
    return {canonicalize_name(r.name) for r in map(Requirement, lines) if holds(r, version)}


def test_uv_s_tables_leave_out_what_they_say_and_nothing_else() -> None:
    tables = {table["name"]: table for table in PROJECT["tool"]["uv"]["dependency-metadata"]}
    assert set(tables) == set(LEFT_OUT)
    for name, table in tables.items():
        (pin,) = pins()[name]
        assert str(pin.specifier) == f"=={table['version']}"
        try:
            theirs = required(metadata.requires(name) or [])
        except metadata.PackageNotFoundError:
            continue
        assert required(table["requires-dist"]) - ADDED.get(name, set()) == theirs - LEFT_OUT[name]


@pytest.mark.parametrize(
    ("extra", "package", "missing"), [("dmc", "dm-control", "labmaze"), ("maniskill", "mani-skill", "mplib")]
)
def test_python_3_13_gets_what_a_package_needs_that_comes_without_dependencies(extra: str, package: str, missing: str) -> None:
    if any(PathFinder.find_spec(name) is None for name in (package.replace("-", "_"), "mujoco")):
        pytest.skip(f"{package} is not installed")
    mujoco = required(metadata.requires("mujoco") or [])
    core = required(PROJECT["project"]["dependencies"])
    given = required(EXTRAS[extra], "3.13") | (mujoco if extra == "dmc" else set()) | core
    theirs = required(metadata.requires(package) or [])
    assert theirs - given == {missing} | (
        {"setuptools"} if extra == "dmc" else set()
    )  # torch brings setuptools on Python 3.12 and newer
    assert package not in required(EXTRAS[extra], "3.13") and package in required(EXTRAS[extra], "3.12")


def test_try_install_says_what_is_not_there() -> None:
    rows = ["9.9,-,-,pip,-"]
    script = train.ROOT / "tools" / "try_install.sh"
    done = subprocess.run(["bash", str(script), *rows], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stdout.splitlines()[2:] == ["| 9.9 | - | - | pip | - | 0 | 0 | no python9.9 here |"]


def test_no_simulator_and_no_heavy_library_is_imported_before_it_is_used() -> None:
    code = f"""
import agents.registry, agents.difftop_rl, difftop.command, envs, difftop.run.session, difftop.qp, train
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


def test_a_python_without_the_packages_is_told_in_one_sentence() -> None:
    alone = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    line = [sys.executable, "-S", "train.py", "env=toy/reach"]  # -S: the standard library and this folder only
    done = subprocess.run(line, cwd=train.ROOT, capture_output=True, text=True, timeout=60, env=alone)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"error: {sys.executable} has no package '") and done.stderr.count("\n") == 1
    assert "`make setup`" in done.stderr and "`pip install .`" in done.stderr


def test_any_other_missing_module_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> int:
        raise ModuleNotFoundError("No module named 'difftop.gone'", name="difftop.gone")

    monkeypatch.setattr(command, "main", broken)
    with pytest.raises(ModuleNotFoundError, match=r"difftop\.gone"):
        command.run_command()
    needed = {
        Requirement(text).name.replace("hydra-core", "hydra").replace("-", "_") for text in PROJECT["project"]["dependencies"]
    }
    assert needed | {"omegaconf"} == command.REQUIRED


def test_registry_strings_lead_to_classes() -> None:
    for name, entry in AGENTS.items():
        assert config_class(name)().name == name
        assert callable(entry.find(entry.agent))


def test_files_stay_small() -> None:
    files = [p for room in PACKAGES for p in (train.ROOT / room).rglob("*.py")] + [
        train.ROOT / "train.py",
        train.ROOT / "setup.py",
    ]
    long = {str(p.relative_to(train.ROOT)): n for p in files if (n := len(p.read_text().splitlines())) > 400}
    assert long == {}
