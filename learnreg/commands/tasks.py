"""What ``learnreg train`` can learn: one line for each task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from learnreg.commands import denoise, tomography
from learnreg.commands.common import Scenario, run_scenario
from learnreg.commands.options import DenoiseConfig, TomographyConfig, TrainingConfig

__all__ = ["TASKS", "Task", "run_task"]


@dataclass(frozen=True)
class Task:
    """A task of the command line: its options and, for given ones, what is learned from. help: of its command."""

    name: str
    config: type[TrainingConfig]
    scenario: Callable[[Any], Scenario]
    help: str


TASKS = {
    task.name: task
    for task in (
        Task(
            "denoise",
            DenoiseConfig,
            denoise.scenario,
            """Learn a regularizer for denoising.

            Writes model.safetensors, config.toml, metrics.jsonl, report.html and checkpoint/ into the run folder.
            Options come from the defaults, then --config, then --set, then the options given here; a resumed run starts
            from its own config.toml.""",
        ),
        Task(
            "ct",
            TomographyConfig,
            tomography.scenario,
            """Learn a regularizer for computed tomography (needs the extra ct).

            Run folder and options as for `learnreg train denoise`.""",
        ),
    )
}


def run_task(task: Task, config: TrainingConfig, resume: bool = False) -> dict[str, Any]:
    """Train as the options of the task ask for; returns the figures of the summary."""
    return run_scenario(task.scenario(config), resume)
