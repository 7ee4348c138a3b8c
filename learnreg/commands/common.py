"""What every training command does: training, a baseline, a comparison, and the report, each announced."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from learnreg.commands.initial import start_from
from learnreg.commands.option_checks import device_of
from learnreg.commands.options import TrainingConfig
from learnreg.commands.process import large_blocks_kept, threads
from learnreg.errors import ConfigError
from learnreg.hypergradients import METHODS
from learnreg.losses import LOSSES
from learnreg.lower_level.problem import LowerLevelProblem
from learnreg.progress import tell
from learnreg.regularizers import REGULARIZERS, Regularizer, TotalVariation
from learnreg.report.comparison import Comparison
from learnreg.report.lower_level import conditioning, weak_convexity
from learnreg.report.report import Report, require_packages, write_report
from learnreg.result import Minimiser
from learnreg.training.baseline import tune_total_variation
from learnreg.training.batch_groups import batch_groups
from learnreg.training.callbacks import Callbacks
from learnreg.training.environment import environment
from learnreg.training.group import Group
from learnreg.training.options import TrainingOptions
from learnreg.training.process_group import joined
from learnreg.training.progress import Progress
from learnreg.training.result import TrainResult
from learnreg.training.run_folder import RunFolder
from learnreg.training.run_report import notes_of
from learnreg.training.shared_folder import folder_of
from learnreg.training.sources import PairedDataset
from learnreg.training.tensorboard import TensorBoard
from learnreg.training.train import Trainer

__all__ = ["Scenario", "announce", "comparison_figures", "initial_regularizer", "run_scenario"]


@dataclass(frozen=True)
class Scenario:
    """What a training command learns from, and what its result is compared on.

    config: the options, with what the data say of themselves. pairs: measurements and ground truths to train on.
    lower_level: the problem of a regularizer, for that kind of minimiser. described: goes into the model file
    beside the options. validate: mean PSNR of a problem on held-out images. tv_weight, tv_samples, tv_tolerance: where
    the search for the weight of total variation starts, and on how many pairs and how accurately it is done. compare:
    a learned problem and one with total variation, on held-out images. input_key: the name of the PSNR of the inputs in
    the summary. title: of the report. tv_pairs: for total variation, of one noise level; None: those to train on.
    """

    config: TrainingConfig
    pairs: PairedDataset
    lower_level: Callable[[Regularizer, Minimiser], LowerLevelProblem]
    described: Mapping[str, Any]
    validate: Callable[[LowerLevelProblem], float]
    tv_weight: float
    tv_samples: int
    tv_tolerance: float
    compare: Callable[[LowerLevelProblem, LowerLevelProblem], Comparison]
    input_key: str
    title: str
    tv_pairs: PairedDataset | None = None

    def problem(self, regularizer: Regularizer) -> LowerLevelProblem:
        """With a regularizer that is learned."""
        return self.lower_level(regularizer, cast("Minimiser", self.config.minimiser))

    def baseline(self) -> LowerLevelProblem:
        """With total variation, its weight still to be tuned."""
        return self.lower_level(TotalVariation(self.tv_weight, **self.config.image_kind), "global")


def run_scenario(scenario: Scenario, resume: bool = False, force: bool = False) -> dict[str, Any]:
    """Train, compare with total variation whose weight was tuned on the same pairs, and write the report.

    Returns the figures of the summary; none to the workers of a group but the first, which compares and writes.

    Raises
    ------
    ConfigError: bad options. CheckpointError: the run folder cannot be used. What ``learnreg.train`` raises.
    """
    require_packages()
    config = scenario.config
    torch.manual_seed(config.seed)
    problem = scenario.problem(initial_regularizer(config, resume))
    progress = Progress(config.minutes, config.updates or None)
    with joined() as group, folder_of(config.out, resume, group).held() as folder:
        trainer = _trainer(scenario, problem, progress, group)
        with progress:
            result = _learn(trainer, config, folder, resume, force)
        return group.last(lambda: _compared(scenario, problem, folder, result), {})


def _compared(scenario: Scenario, problem: LowerLevelProblem, folder: RunFolder, result: TrainResult) -> dict[str, Any]:
    """Compare what was learned, and write the report."""
    config = scenario.config
    problem.to("cpu")
    baseline = scenario.baseline()
    announce(f"tuning the weight of total variation on {scenario.tv_samples} samples, for comparison")
    pairs = scenario.pairs if scenario.tv_pairs is None else scenario.tv_pairs
    tv_weight = tune_total_variation(baseline, pairs, scenario.tv_samples, scenario.tv_tolerance)
    announce("reconstructing the held-out images")
    comparison = scenario.compare(problem, baseline)
    summary = {
        **comparison_figures(comparison, scenario.input_key),
        "tv_weight": tv_weight,
        "held_out": sorted(image.name for image in comparison.images),
        **_training_figures(result, config.schedule == "annealed"),
        **weak_convexity(problem),
        "model": str(folder.model_path),
    }
    announce("writing the report")
    b = scenario.pairs[0][0][None]
    report = Report(
        scenario.title,
        comparison,
        problem.active_regularizer,
        folder.rows(),
        config.in_force() | {name.replace("_", " "): value for name, value in environment().items()},
        summary,
        {"learned": conditioning(problem, b), "total variation": conditioning(baseline, b)},
        notes=notes_of(result),
    )
    return summary | {"report": str(write_report(folder.path, report))}


def announce(what: str) -> None:
    """Say on stderr what takes its time now."""
    tell(what)


def initial_regularizer(config: TrainingConfig, resume: bool = False) -> Regularizer:
    """The regularizer that training starts from; ``resume``: its parameters are those of a run.

    Raises
    ------
    ConfigError: options that do not fit together, or a model of another kind. CheckpointError: an unreadable one.
    """
    made = REGULARIZERS[config.regularizer].from_options(config, torch.Generator().manual_seed(config.seed))
    if config.init != "none" and not resume:
        start_from(made, config.init)
    return made


def _trainer(scenario: Scenario, problem: LowerLevelProblem, progress: Progress, group: Group) -> Trainer:
    """The run that the options ask for; moves the problem to their device."""
    config, device = scenario.config, group.device(device_of(scenario.config.device))
    options = TrainingOptions(
        config.minutes,
        config.updates or None,
        config.batch_size,
        METHODS[config.method](),
        config.tolerance,
        config.optimizer,  # type: ignore[arg-type]
        config.step_size,
        config.samples or None,
        config.seed,
        config.tune,
        config.audit_every,
        config.sampling,  # type: ignore[arg-type]
        workers=torch.get_num_threads(),
        chunk_size=config.chunk_size or None,
        epochs=config.epochs or None,
        schedule=config.schedule,  # type: ignore[arg-type]
        validation=config.validation,
        patience=config.patience or None,
        noise_weighting=config.in_force().get("noise_weighting", "none"),
        pretraining=config.pretraining,
    )
    boards = [TensorBoard(Path(config.out) / "tensorboard")] if config.tensorboard else []
    there = device == torch.device("cpu")
    problem.to(device)
    return Trainer(
        problem,
        scenario.pairs if there else _Moved(scenario.pairs, device),
        LOSSES[config.loss],
        options,
        config={**scenario.described, "training": config.in_force()},
        # held-out images stay on the CPU, whose results do not depend on the machine's accelerator
        validate=lambda: scenario.validate(problem if there else copy.deepcopy(problem).to("cpu")),
        callbacks=Callbacks([*boards, progress]),
        table=config.in_force(),
    )


class _Moved:
    """The pairs, on a device."""

    def __init__(self, pairs: PairedDataset, device: torch.device) -> None:
        self._pairs, self._device = pairs, device

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        b, x_true, *level = self._pairs[index]
        return b.to(self._device), x_true.to(self._device), *level

    def batch_groups(self) -> list[list[int]] | None:
        return batch_groups(self._pairs)


def _learn(trainer: Trainer, config: TrainingConfig, folder: RunFolder, resume: bool, force: bool) -> TrainResult:
    # One thread: audits and held-out images are small, too, and several cores only slow them.
    with threads(1), large_blocks_kept():
        result = trainer.run(folder, resume, force)
    if result.was_cut:
        announce(f"training: ended by the {how_it_ended(result, config.schedule == 'annealed')}")
    if result.updates == 0:
        raise ConfigError(f"minutes={config.minutes:g}: over before the first update, so that nothing was learned.")
    return result


def comparison_figures(comparison: Comparison, input_key: str) -> dict[str, Any]:
    """Means of a comparison, for the summary; ``input_key`` names the PSNR of the inputs."""
    means = {what: comparison.mean(what) for what in ("input", "tv", "learned")}
    return {
        input_key: means["input"].psnr,
        "psnr_tv": means["tv"].psnr,
        "psnr_learned": means["learned"].psnr,
        "gain_over_tv": means["learned"].psnr - means["tv"].psnr,
        "ssim_tv": means["tv"].ssim,
        "ssim_learned": means["learned"].ssim,
    }


def how_it_ended(result: TrainResult, annealed: bool) -> str:
    """What ended a run, for people; of an annealed one that the time cut, what that means."""
    if not result.was_cut:
        return result.ended_by
    meaning = ", before step sizes had fallen to their end; go on with --resume and more --minutes" if annealed else ""
    return f"minutes, after {result.updates} of {result.asked} updates{meaning}"


def _training_figures(result: TrainResult, annealed: bool) -> dict[str, Any]:
    """Totals of a run, for the summary."""
    audits = [row for row in result.rows if "relative_error_bound" in row]
    last = audits[-1] if audits else {}
    return {
        "updates": result.updates,
        "ended_by": how_it_ended(result, annealed),
        "seconds": result.seconds,
        "operator_applications": result.operator_applications,
        "hypergradient_relative_error_bound": last.get("relative_error_bound"),
        "hypergradient_certified": last.get("certified"),
    }
