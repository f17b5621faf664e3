"""Measurements of the learning experiment's runs go in; the summary of all, and of how long it took, comes out."""

import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

STAGES = ("warm_start", "grpo")
CONTROL = "shuffled_reward"


def summarise(seeds: Sequence[Mapping[str, Any]], others: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Figures as lists over seeds, by stage and of the controls, and all `details`. Those called expected are of what
    the model expects its rating to be (`vqathinker_jax/expectation.py`), the others of the rating as it writes it.

    seeds: by stage, what `measure.measure` tells. others: the same of the control and of what else was run, by name.
    """
    stages = {
        stage: {
            "in_domain_srcc": [each[stage]["in_domain"]["srcc"][0] for each in seeds],
            "out_of_domain_srcc": [each[stage]["out_of_domain"]["srcc"][0] for each in seeds],
            "in_domain_plcc": [each[stage]["in_domain"]["plcc"][0] for each in seeds],
            "format_rate": [each[stage]["in_domain"]["format_rate"] for each in seeds],
            "temporal_pair_rate": [each[stage]["temporal"]["above"] for each in seeds],
            "expected_in_domain_srcc": [each[stage]["in_domain"]["expected"]["srcc"][0] for each in seeds],
            "expected_out_of_domain_srcc": [each[stage]["out_of_domain"]["expected"]["srcc"][0] for each in seeds],
            "expected_in_domain_plcc": [each[stage]["in_domain"]["expected"]["plcc"][0] for each in seeds],
            "expected_temporal_pair_rate": [each[stage]["temporal"]["expected_above"] for each in seeds],
        }
        for stage in STAGES
    }
    controls = {
        "blank_frames_srcc": [each["grpo"]["blank_frames"][0] for each in seeds],
        "shuffled_reward_srcc": [others[CONTROL]["in_domain"]["srcc"][0]],
        "expected_shuffled_reward_srcc": [others[CONTROL]["in_domain"]["expected"]["srcc"][0]],
    }
    return {**stages, **controls, "details": {"seeds": list(seeds), **others}}


def effort(seconds: float, processes: int, ablations: bool) -> dict[str, Any]:
    """How long all of it took, whether with the ablations, and on what machine."""
    machine = f"{processes} processes on {os.cpu_count()} cores, {platform.machine()}"
    return {"minutes": round(seconds / 60, 1), "machine": machine, "with_ablations": ablations}
