"""`mode=data dataset=PATH`: a look at any data set before anything trains on it."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from difftop.data.demonstrations import EnvInfo
from difftop.data.files import survey
from difftop.datasets.summary import Summary, summarize
from difftop.datasets.table import draw, text
from difftop.key_values import parsed
from difftop.options import ConfigError, build, option

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataConfig:
    """What is looked at, and where the picture goes."""

    dataset: str = option("", "file or folder of demonstrations")
    picture: str = option("", "PNG to write; empty: <name>.png in this folder; none: no picture")
    json: str = option("", "file to write it to (--json PATH); terminal: print it in place of the table (--json)")


@dataclass(frozen=True)
class Known:
    """What is known of environments, handed in because this package knows no simulator.

    Attributes:
        env_of: what a data set says of its environment, and the stem of its path, to our name of it.
        installed: our name of an environment to the version of its simulator that is installed, empty for none.
    """

    env_of: Callable[[EnvInfo, str], str]
    installed: Callable[[str], str]


def data_command(arguments: Sequence[str], known: Known) -> Summary:
    """Prints the table, or JSON, and draws the picture.

    Raises:
        ConfigError: no data set is named, or an unknown option.
        DemonstrationError: it is none that is known.
    """
    config = build(DataConfig, parsed(_without_dashes(arguments)))
    if not config.dataset:
        raise ConfigError("mode=data needs dataset=PATH, a file or folder of demonstrations.")
    summary = look(Path(config.dataset).expanduser(), known)
    found = json.dumps(summary.plain(), indent=2) + "\n"
    sys.stdout.write(found if config.json == "terminal" else text(summary))
    if config.json not in ("", "terminal"):
        Path(config.json).write_text(found)
    if config.picture != "none":
        picture = Path(config.picture or f"{summary.survey.path.resolve().stem}.png")
        draw(summary, picture)
        log.info("picture: %s", picture)
    return summary


def look(path: Path, known: Known) -> Summary:
    """The summary of a data set; raises `DemonstrationError`."""
    found = survey(path)
    env = known.env_of(found.env, path.resolve().stem)
    return summarize(found, env, known.installed(env))


def _without_dashes(arguments: Sequence[str]) -> list[str]:
    """`--json`, `--json PATH` and `--json=PATH` as `json=`; the other arguments as they are."""
    words: list[str] = []
    waits = False
    for argument in arguments:
        if waits and "=" not in argument:
            words[-1], waits = f"json={argument}", False
        elif argument == "--json":
            words.append("json=terminal")
            waits = True
        else:
            words.append(argument.removeprefix("--"))
            waits = False
    return words
