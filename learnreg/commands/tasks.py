"""What ``learnreg train`` can learn: one line for each task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from learnreg.commands.common import Scenario
    from learnreg.commands.options import TrainingConfig

__all__ = ["TASKS", "Task", "run_task", "tasks_with"]


@dataclass(frozen=True)
class Task:
    """A task of the command line. help: of its command. module: in ``learnreg.commands``, whose ``scenario`` tells for
    given options what is learned from. options: their class in ``learnreg.commands.options``.

    Both are imported when they are asked for: torch takes seconds, and the list of commands needs none of it.
    """

    name: str
    module: str
    options: str
    help: str

    @property
    def config(self) -> type[TrainingConfig]:
        """The class of the options."""
        found: type[TrainingConfig] = getattr(import_module("learnreg.commands.options"), self.options)
        return found

    @property
    def scenario(self) -> Callable[[Any], Scenario]:
        """What is learned from, for given options."""
        found: Callable[[Any], Scenario] = import_module(f"learnreg.commands.{self.module}").scenario
        return found


TASKS = {
    task.name: task
    for task in (
        Task(
            "denoise",
            "denoise",
            "DenoiseConfig",
            """Learn a regularizer for denoising.

            Writes model.safetensors, config.toml, metrics.jsonl, report.html and checkpoint/ into the run folder.
            Options come from the defaults, then --config, then --set, then the options given here; a resumed run starts
            from its own config.toml.""",
        ),
        Task(
            "ct",
            "tomography",
            "TomographyConfig",
            """Learn a regularizer for computed tomography (needs the extra ct).

            Run folder and options as for `learnreg train denoise`.""",
        ),
        Task(
            "mri",
            "mri",
            "MriConfig",
            """Learn a regularizer for magnetic resonance imaging.

            K-space of Cartesian lines, one coil or several, is simulated from complex images. Run folder and options as
            for `learnreg train denoise`.""",
        ),
        Task(
            "deblur",
            "deblur",
            "DeblurConfig",
            """Learn a regularizer for deblurring.

            Photographs are blurred by a Gaussian. Run folder and options as for `learnreg train denoise`.""",
        ),
    )
}


def tasks_with(option: str) -> list[str]:
    """The tasks that have an option of that name, written with hyphens or underscores."""
    name = option.replace("-", "_")
    return [task.name for task in TASKS.values() if name in task.config.__dataclass_fields__]


def run_task(task: Task, config: TrainingConfig, resume: bool = False, force: bool = False) -> dict[str, Any]:
    """Train as the options of the task ask for; returns the figures of the summary."""
    from learnreg.commands.common import run_scenario

    return run_scenario(task.scenario(config), resume, force)
