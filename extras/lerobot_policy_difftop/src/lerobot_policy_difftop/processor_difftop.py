"""Nothing is normalized: the checkpoint holds its own numbers."""

from __future__ import annotations

from typing import Any

from lerobot.processor import (
    AddBatchDimensionProcessorStep,
    DeviceProcessorStep,
    NormalizerProcessorStep,
    PolicyProcessorPipeline,
    RenameObservationsProcessorStep,
    UnnormalizerProcessorStep,
)
from lerobot.processor.converters import policy_action_to_transition, transition_to_policy_action

from lerobot_policy_difftop.configuration_difftop import DifftopConfig


def make_difftop_pre_post_processors(config: DifftopConfig, dataset_stats: Any = None) -> tuple[Any, Any]:
    """The pipelines before and after the policy, by the name that LeRobot looks for."""
    before = [
        RenameObservationsProcessorStep(rename_map={}),
        AddBatchDimensionProcessorStep(),
        DeviceProcessorStep(device=config.device),
        NormalizerProcessorStep(features={}, norm_map=config.normalization_mapping),  # lerobot-train looks for these two
    ]
    after = [UnnormalizerProcessorStep(features={}, norm_map=config.normalization_mapping), DeviceProcessorStep(device="cpu")]
    return (
        PolicyProcessorPipeline(steps=before, name="policy_preprocessor"),
        PolicyProcessorPipeline(
            steps=after,
            name="policy_postprocessor",
            to_transition=policy_action_to_transition,
            to_output=transition_to_policy_action,
        ),
    )
