"""``learnreg.train``: learn the regularizer of a lower-level problem from pairs (b, x_true)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from learnreg.convolutions.correlation import chosen_kernels
from learnreg.errors import ConfigError, DataError, LearnregError, OperatorError
from learnreg.hypergradients.base import HypergradientMethod
from learnreg.hypergradients.implicit import Implicit
from learnreg.losses import SquaredError, UpperLoss
from learnreg.lower_level.problem import LowerLevelProblem
from learnreg.regularizers import Regularizer
from learnreg.training.clock import TimeUp
from learnreg.training.guard import examine_problem, guarded, take_as_they_are
from learnreg.training.optimizers import make_upper_level
from learnreg.training.options import OptimizerName, TrainingOptions
from learnreg.training.run_folder import RunFolder
from learnreg.training.sampler import PairedDataset
from learnreg.training.session import Session

__all__ = ["OptimizerName", "TrainResult", "Trainer", "train"]

_CHECKPOINT_SECONDS = 30.0


@dataclass(frozen=True)
class TrainResult:
    """regularizer: the learned one (the problem's own, changed in place). model_path: None without a run folder. rows:
    what was logged, one dict per update. updates, seconds, operator_applications: totals, earlier runs included."""

    regularizer: Regularizer
    model_path: Path | None
    rows: list[dict[str, Any]]
    updates: int
    seconds: float
    operator_applications: int


def train(
    problem: LowerLevelProblem,
    dataset: PairedDataset,
    loss: Callable[[Tensor], UpperLoss] = SquaredError,
    out: str | Path | RunFolder | None = None,
    minutes: float = 5.0,
    batch_size: int = 16,
    *,
    method: HypergradientMethod | None = None,
    tolerance: float = 1e-1,
    optimizer: OptimizerName = "adam",
    step_size: float = 2e-2,
    samples: int = 64,
    seed: int = 0,
    max_updates: int | None = None,
    resume: bool = False,
    check_operator: bool = True,
    config: Mapping[str, Any] | None = None,
    validate: Callable[[], float] | None = None,
    on_update: Callable[[Mapping[str, Any]], None] | None = None,
) -> TrainResult:
    """Minimise the mean loss over the dataset in the problem's learnable parameters, in place.

    What is computed runs in threads of one core each, as many as ``torch.get_num_threads()`` for the chunks of a batch:
    several cores for every small operation are slower, and much slower on a busy machine. ``validate`` runs in the
    calling thread, on the cores that torch gives it. No setting of the process is changed; the command line, while it
    trains, gives its own thread one core, too, and makes glibc's allocator keep large blocks, which spares page faults.
    The environment variables MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_, 1073741824 each, do the latter for any
    program.

    Parameters
    ----------
    dataset: map-style, item i = (b, x_true) without batch axis; read from several threads.
    loss: maps a batch of ground truths to an ``UpperLoss``.
    out: run folder (model.safetensors, config.toml, metrics.jsonl, checkpoint/; the command line adds the report);
        None keeps everything in memory, as a regularizer without ``config()`` needs.
    minutes: of upper-level training.
    method: of the hypergradients; ``Implicit()`` by default, the fastest one as measured.
    tolerance: relative error of the hypergradients, held by audits: certified float64 hypergradients of a few samples,
        which bound the error of the gradients that training used for these and so set the lower-level tolerances. With
        "adaptive" every step is certified instead.
    optimizer: "adam" (minibatches), "lbfgs" (the first ``samples`` items at once) or "adaptive" (certified descent on
        them).
    step_size: initial, of Adam and of adaptive descent.
    max_updates: at most; None for as many as the minutes allow.
    resume: go on from the checkpoint in ``out``.
    check_operator: examine operators and regularizers that are not this package's own before any work, with a few
        applications (``learnreg.testing``); False: take them as they are (``examine = False``), uncertified.
    config: stored with the model.
    validate: called now and then; its value is logged as ``psnr``.
    on_update: gets each logged row.

    Raises
    ------
    ConfigError, DataError, ShapeError: bad input. OperatorError: an operator of your own fails a check before training,
    or raises or makes NaN in the middle of it. SolverError: another numerical failure. The last parameters and the
    checkpoint are saved first, as they are on an interrupt, so that ``resume`` goes on from there.
    """
    chosen = TrainingOptions(
        minutes,
        batch_size,
        Implicit() if method is None else method,
        tolerance,
        optimizer,
        step_size,
        samples,
        seed,
        max_updates,
        workers=torch.get_num_threads(),
    )
    trainer = Trainer(
        problem,
        dataset,
        loss,
        chosen,
        config=config,
        validate=validate,
        on_update=on_update,
        check_operator=check_operator,
    )
    return trainer.run(out, resume)


class Trainer:
    """A training run of given options; ``run`` starts it. The parameters are those of ``train``."""

    def __init__(
        self,
        problem: LowerLevelProblem,
        dataset: PairedDataset,
        loss: Callable[[Tensor], UpperLoss],
        options: TrainingOptions,
        *,
        config: Mapping[str, Any] | None = None,
        validate: Callable[[], float] | None = None,
        on_update: Callable[[Mapping[str, Any]], None] | None = None,
        check_operator: bool = True,
    ) -> None:
        if len(dataset) == 0:
            raise DataError("the dataset is empty.")
        if not problem.learnable():
            raise ConfigError(
                "train: no parameter of the problem requires a gradient. Those of a regularizer are what "
                "named_parameters() yields: modules in a plain list are not seen, those in an nn.ModuleList are."
            )
        if check_operator:
            examine_problem(problem, lambda: dataset[0][0].dtype)
        else:
            take_as_they_are(problem)
        self.problem, self.dataset, self.loss, self.options = problem, dataset, loss, options
        self.config, self.validate, self.on_update = config, validate, on_update

    def run(self, out: str | Path | RunFolder | None = None, resume: bool = False) -> TrainResult:
        """Train until the time or the updates are used up; the last parameters are saved whatever ends the run."""
        options = self.options
        folder = RunFolder(out, resume) if isinstance(out, (str, Path)) else out
        if folder is not None and folder.load_config() is None:
            names = ("optimizer", "step_size", "tolerance", "seed")
            folder.save_config({name: getattr(options, name) for name in names})
        session = Session.of(guarded(self.problem), self.dataset, self.loss, options)
        try:
            run = _Run(self, session, folder)
            if resume and folder is not None:
                run.restore()
            run.save()  # what cannot be stored is refused before the work, not after it
            return run.until(options.max_updates)
        finally:
            session.close()


class _Run:
    """The loop: update, audit, log, save; whatever ends it, nothing computed is lost."""

    def __init__(self, trainer: Trainer, session: Session, folder: RunFolder | None) -> None:
        options = trainer.options
        self.trainer, self.session, self.folder = trainer, session, folder
        self.upper = make_upper_level(options.optimizer, session, options.step_size, options.samples)
        self.updates = 0
        self.rows: list[dict[str, Any]] = []
        self._saved = self._validated = time.monotonic()

    def until(self, max_updates: int | None) -> TrainResult:
        self.session.clock.start()
        try:
            while max_updates is None or self.updates < max_updates:
                row = self.upper.update()
                self.updates += 1
                self._log(row)
                if time.monotonic() - self._saved > _CHECKPOINT_SECONDS:
                    self.save()
        except TimeUp:
            pass
        except OperatorError as error:
            raise OperatorError(f"{error} {self._rescue()}", error.failed_property) from error
        except BaseException as error:
            error.add_note(self._rescue())
            raise
        self.save()
        path = None if self.folder is None else self.folder.model_path
        session = self.session
        return TrainResult(
            session.problem.regularizer, path, self.rows, self.updates, session.clock.elapsed, session.applications
        )

    def _rescue(self) -> str:
        """Save what there is, and say where it is and how to go on."""
        when = f"It happened in update {self.updates + 1}"
        if self.folder is None:
            return f"{when}; the problem's regularizer holds what the updates before it learned."
        try:
            self.save()
        except LearnregError as error:  # what went wrong first matters more
            return f"{when}, and what was learned could not be saved: {error}"
        return (
            f"{when}; all that the updates before it learned is saved in {self.folder.path}. To go on from there: "
            "resume=True, --resume on the command line."
        )

    def _log(self, row: dict[str, Any]) -> None:
        session = self.session
        row |= {
            "step": self.updates,
            "seconds": session.clock.elapsed,
            "operator_applications": session.applications,
            "state_tolerance": session.tolerances.state,
            "adjoint_tolerance": session.tolerances.adjoint,
        }
        interval = max(15.0, session.clock.seconds / 12.0)
        validate, on_update = self.trainer.validate, self.trainer.on_update
        if validate is not None and (self.updates == 1 or time.monotonic() - self._validated > interval):
            row["psnr"] = validate()
            self._validated = time.monotonic()
        self.rows.append(row)
        if self.folder is not None:
            self.folder.log(row)
        if on_update is not None:
            on_update(row)

    def save(self) -> None:
        """Model, checkpoint, and the convolution kernels in use: measurements choose them, so that two runs of the same
        options may round differently."""
        if self.folder is None:
            return
        self.folder.save_model(self.trainer.problem, self.trainer.config)
        self.folder.save_kernels(chosen_kernels())
        self.folder.save_checkpoint(
            {
                "parameters": {name: p.detach() for name, p in self.session.problem.learnable().items()},
                "session": self.session.state_dict(),
                "upper": self.upper.state_dict(),
                "updates": self.updates,
            }
        )
        self._saved = time.monotonic()

    @torch.no_grad()
    def restore(self) -> None:
        """Go on from the folder's checkpoint, if it has one."""
        assert self.folder is not None
        state = self.folder.load_checkpoint()
        if state is None:
            return
        for name, p in self.session.problem.learnable().items():
            stored = state["parameters"].get(name)
            if stored is None or stored.shape != p.shape:
                raise ConfigError(f"the checkpoint in {self.folder.path} has no parameter {name} of {tuple(p.shape)}.")
            p.copy_(stored)
        self.session.load_state_dict(state["session"])
        self.upper.load_state_dict(state["upper"])
        self.updates = int(state["updates"])
        self.rows = self.folder.rows()
