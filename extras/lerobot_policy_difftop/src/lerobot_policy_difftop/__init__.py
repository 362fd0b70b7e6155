"""Policies of difftop for LeRobot, which trains them or plays what difftop trained: `--policy.type=difftop`."""

from lerobot_policy_difftop.configuration_difftop import DifftopConfig
from lerobot_policy_difftop.modeling_difftop import DifftopPolicy
from lerobot_policy_difftop.processor_difftop import make_difftop_pre_post_processors

__all__ = ["DifftopConfig", "DifftopPolicy", "make_difftop_pre_post_processors"]
