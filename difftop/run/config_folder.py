"""Where the YAML files are: beside the packages in a source tree, inside `difftop` where a wheel was installed."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def config_folder(package: Path = PACKAGE) -> Path:
    """The folder that holds `config.yaml`.

    Args:
        package: the folder of the package `difftop`.
    Raises:
        FileNotFoundError: neither place has one, so the installation is damaged.
    """
    places = (package / "configs", package.parent / "configs")
    for place in places:
        if (place / "config.yaml").is_file():
            return place
    raise FileNotFoundError(
        f"no config.yaml in {places[0]} or {places[1]}: difftop's configuration files are missing; install difftop again."
    )
