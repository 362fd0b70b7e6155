"""Puts configs/ into the wheel, as difftop/configs; everything else is in pyproject.toml."""

from pathlib import Path
from shutil import copytree

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """A wheel has a copy of the YAML files; an editable install reads those of the source tree."""

    def run(self) -> None:
        """Builds the packages, then copies."""
        super().run()
        if not self.editable_mode:
            source = Path(__file__).resolve().parent / "configs"
            copytree(source, Path(self.build_lib) / "difftop" / "configs", dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithConfigs})
