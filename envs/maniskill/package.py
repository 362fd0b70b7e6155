"""Finds ManiSkill, its tasks and their assets, and says what to do where something is missing."""

from __future__ import annotations

from typing import Any

from envs.errors import EnvError
from envs.llvm import load_triton
from envs.maniskill.tasks import CONTROL, TASKS

INSTALL_LINE = "pip install -e '.[maniskill]' -c constraints.txt"
VULKAN_LINE = "sh tools/vulkan.sh"


def version() -> str:
    """Of the installed package.

    Raises:
        EnvError: there is none.
    """
    return str(_import_maniskill("maniskill").__version__)


def _import_maniskill(name: str) -> Any:
    load_triton()
    try:
        import mani_skill.envs
    except ModuleNotFoundError as error:
        raise EnvError(f"{name}: package mani_skill is not installed ({error}); {INSTALL_LINE}") from error
    return mani_skill


def registered(name: str, task: str) -> Any:
    """ManiSkill's entry of a task; raises where it is unknown, or where ManiSkill would ask whether to download something."""
    _import_maniskill(name)
    from mani_skill.utils import assets
    from mani_skill.utils.registration import REGISTERED_ENVS

    if task not in REGISTERED_ENVS:
        raise EnvError(f"{name}: ManiSkill registers no {task}; it has {', '.join(sorted(TASKS))} and others.")
    entry = REGISTERED_ENVS[task]
    for asset in entry.asset_download_ids or []:
        group = asset in assets.DATA_GROUPS
        sources = assets.expand_data_group_into_individual_data_source_ids(asset) if group else [asset]
        if not all(assets.is_data_source_downloaded(source) for source in sources):
            raise EnvError(f"{name}: its assets are missing; run `python -m mani_skill.utils.download_asset {asset}`.")
    return entry


def make(name: str, entry: Any, kwargs: dict[str, Any], *, asked: bool) -> Any:
    """ManiSkill's environment, actions in [-1, 1]; a robot without the control mode gets its own, unless it was `asked` for."""
    try:
        base = entry.make(**kwargs)
    except AssertionError as error:
        if "not in supported modes" not in str(error):
            raise EnvError(f"{name} can't be made (AssertionError: {error}).") from error
        if asked:
            raise EnvError(f"{name}: control mode {error}; take one of them, or leave env.control empty.") from error
        return make(name, entry, kwargs | {"control_mode": None}, asked=True)
    except Exception as error:  # SAPIEN, tasks and asset loaders each have their own
        text = str(error)
        if isinstance(error, RuntimeError) and ("vk::" in text or "rendering device" in text or "find device" in text):
            raise EnvError(f"{name}: ManiSkill needs a Vulkan device even for states ({text}); run `{VULKAN_LINE}`.") from error
        raise EnvError(f"{name} can't be made ({type(error).__name__}: {text}).") from error
    space = base.single_action_space
    parts = list(space.spaces.values()) if hasattr(space, "spaces") else [space]
    if not all((part.low == -1).all() and (part.high == 1).all() for part in parts):
        base.close()
        raise EnvError(
            f"{name}: actions of control mode {kwargs['control_mode']} are not normalized to [-1, 1]; take {CONTROL}; to convert "
            f"a file: `python -m mani_skill.trajectory.replay_trajectory --traj-path FILE -o state -c {CONTROL} --save-traj`."
        )
    return base
