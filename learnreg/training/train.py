"""``learnreg.train``: learn the regularizer of a lower-level problem from pairs (b, x_true)."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from learnreg.convolutions.correlation import adopt_kernels, chosen_kernels
from learnreg.errors import CheckpointError, ConfigError, LearnregError, OperatorError
from learnreg.hypergradients.base import HypergradientMethod
from learnreg.hypergradients.implicit import tightening
from learnreg.linear.arguments import check_flag, check_type, shown
from learnreg.linear.paths import given_path
from learnreg.losses import SquaredError, UpperLoss
from learnreg.lower_level.problem import LowerLevelProblem
from learnreg.regularizers import Regularizer
from learnreg.result import Brief
from learnreg.training.clock import TimeUp
from learnreg.training.guard import examine_problem, guarded, take_as_they_are
from learnreg.training.interrupts import Interrupts
from learnreg.training.optimizers import make_upper_level
from learnreg.training.options import OptimizerName, SamplingName, TrainingOptions
from learnreg.training.run_folder import RunFolder, contents_of
from learnreg.training.schedule import is_milestone, step_factor
from learnreg.training.session import Session
from learnreg.training.sources import TrainingData
from learnreg.training.start_tuning import tune_start

__all__ = ["OptimizerName", "TrainResult", "Trainer", "train"]


@dataclass(frozen=True, repr=False)
class TrainResult(Brief):
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
    dataset: TrainingData,
    loss: Callable[[Tensor], UpperLoss] = SquaredError,
    out: str | Path | RunFolder | None = None,
    minutes: float | None = None,
    batch_size: int | None = None,
    *,
    updates: int | None = None,
    method: HypergradientMethod | None = None,
    tolerance: float = 1e-1,
    optimizer: OptimizerName = "adam",
    step_size: float = 2e-2,
    samples: int | None = None,
    sampling: SamplingName = "growing",
    audit_every: int = 10,
    seed: int = 0,
    resume: bool = False,
    check_operator: bool = True,
    tune: bool = True,
    config: Mapping[str, Any] | None = None,
    validate: Callable[[], float] | None = None,
    on_update: Callable[[Mapping[str, Any]], None] | None = None,
    max_updates: int | None = None,
) -> TrainResult:
    """Minimise the mean loss over the dataset in the problem's learnable parameters, in place.

    What is computed runs in threads of one core each, as many as ``torch.get_num_threads()`` for the chunks of a batch:
    several cores for every small operation are slower, and much slower on a busy machine. ``validate`` runs in the
    calling thread, on the cores that torch gives it. While it trains, Ctrl-C and other signals that end the
    process wait for the update in progress; no other setting of the process is changed. The command line, while it
    trains, gives its own thread one core, too, and makes glibc's allocator keep large blocks, which spares page faults.
    The environment variables MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_, 1073741824 each, do the latter for any
    program.

    Step sizes, audits, validations and checkpoints follow the number of updates, and the time only ends a run: on one
    thread the same seed gives the same numbers to the bit, however fast data and machine are, and an interrupted run
    that is resumed those of one that was not, with the convolution kernels that were measured to be the fastest when it
    began (of runs in several processes: ``torch.use_deterministic_algorithms(True)`` measures none).

    Parameters
    ----------
    dataset: map-style, item i = (b, x_true) or (b, x_true, sigma) without batch axis, read from several threads; a list
        of such items; stacks (B, X) or (B, X, sigmas) with one entry for each sample; a DataLoader, whose batches are
        taken as it samples and collates them; or an iterable data set. Tensors or NumPy arrays. Images may differ in
        size where the operator knows all of them, as ``Identity`` and ``Blur`` do; those of one size share a batch.
        sigma, a positive number, is the noise level for ``regularizer.at``.
    loss: maps a batch of ground truths to an ``UpperLoss``.
    out: run folder (model.safetensors, config.toml, metrics.jsonl, checkpoint/; the command line adds the report);
        None keeps everything in memory, as a regularizer without ``config()`` needs.
    minutes: of upper-level training at most; 5 where neither minutes nor updates are given.
    batch_size: 16, or that of the DataLoader.
    updates: so many, unless the minutes end before; the step size of Adam falls by a half cosine over them. Without, it
        falls by the inverse square root of the updates so far. A resumed run may ask for more of either.
    method: of the hypergradients; ``Implicit()`` by default, the fastest one as measured.
    tolerance: relative error of the hypergradients, held by audits: certified hypergradients of a few samples, which
        bound the error of the gradients that training used for these and so set the lower-level tolerances. With
        "adaptive" the decrease of every step is certified instead.
    optimizer: "adam" (minibatches), "lbfgs" (the first ``samples`` items at once) or "adaptive" (certified descent on
        them, or on minibatches).
    step_size: initial, of Adam and of adaptive descent.
    samples: of "lbfgs" and "adaptive", the first ones of the data at most; None: 512 of a growing sample, else 64.
    sampling: of "adaptive": "growing" (from 16 of the samples to all of them), "fixed" (all of them) or "minibatch".
    audit_every: updates from one audit to the next; of "adaptive", from one certified gradient to the next.
    resume: go on with the run that ``out`` holds, with the same data and options but minutes and updates.
    check_operator: examine operators and regularizers that are not this package's own before any work, with a few
        applications (``learnreg.testing``); False: take them as they are (``examine = False``), uncertified.
    tune: begin at the factor of the regularizer that has the least loss on four samples, instead of 1, logged as
        ``start_factor``, and with weights of its filters that a few gradients improve.
    config: stored with the model.
    validate: called now and then; its value is logged as ``psnr``.
    on_update: gets each logged row; ``learnreg.training.progress.Progress(minutes)`` tells people how far it is.
    max_updates: former name of ``updates``.

    Raises
    ------
    ConfigError, DataError, ShapeError: bad input, or a run that was begun with other data or options. CheckpointError:
        a checkpoint that cannot be used. OperatorError: an operator of your own fails a check before training,
    or raises or makes NaN in the middle of it. SolverError: another numerical failure. The last parameters and the
    checkpoint are saved first, so that ``resume`` goes on from there. KeyboardInterrupt: on Ctrl-C, SIGTERM or SIGHUP,
    after the update in progress and with everything saved; a second one acts at once.
    """
    if max_updates is not None:
        warnings.warn("train(max_updates=...): the option is called updates now.", DeprecationWarning, stacklevel=2)
        if updates is not None:
            raise ConfigError(f"train(updates={updates}, max_updates={max_updates}): give updates alone.")
    chosen = TrainingOptions(
        minutes,
        max_updates if updates is None else updates,
        batch_size,
        tightening(method),
        tolerance,
        optimizer,
        step_size,
        samples,
        seed,
        tune,
        audit_every,
        sampling,
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
    result = trainer.run(out, resume)
    if result.updates == 0:
        warnings.warn("train: the time was over before the first update; give more minutes.", stacklevel=2)
    return result


class Trainer:
    """A training run of given options; ``run`` starts it. The parameters are those of ``train``."""

    def __init__(
        self,
        problem: LowerLevelProblem,
        dataset: TrainingData,
        loss: Callable[[Tensor], UpperLoss],
        options: TrainingOptions,
        *,
        config: Mapping[str, Any] | None = None,
        validate: Callable[[], float] | None = None,
        on_update: Callable[[Mapping[str, Any]], None] | None = None,
        check_operator: bool = True,
    ) -> None:
        check_type(problem, LowerLevelProblem, "train(problem)", "a LowerLevelProblem")
        if not problem.learnable():
            raise ConfigError(
                "train: no parameter of the problem requires a gradient. Those of a regularizer are what "
                "named_parameters() yields: modules in a plain list are not seen, those in an nn.ModuleList are."
            )
        check_flag(check_operator, "train(check_operator)")
        for name, function in (("validate", validate), ("on_update", on_update)):
            if function is not None and not callable(function):
                raise ConfigError(f"train({name}={shown(function)}): expected a function, or None.")
        self.problem, self.dataset, self.loss, self.options = problem, dataset, loss, options
        self.config, self.validate, self.on_update = config, validate, on_update
        self.check_operator = check_operator

    def run(self, out: str | Path | RunFolder | None = None, resume: bool = False) -> TrainResult:
        """Train until the time or the updates are used up; the last parameters are saved whatever ends the run."""
        options = self.options
        check_flag(resume, "train(resume)")
        if not (out is None or isinstance(out, RunFolder)):
            out = given_path(out, "train(out)")
        if resume and (out is None or (isinstance(out, Path) and not contents_of(out))):
            where = "no out, where the run is" if out is None else f"no run in {out}"
            raise ConfigError(f"train(resume=True): {where}. To start a new run, leave resume out.")
        session = Session.of(self.problem, self.dataset, self.loss, options)
        try:
            if self.check_operator:
                examine_problem(self.problem, lambda: session.source.first(1)[0].b.dtype)
            else:
                take_as_they_are(self.problem)
            session.problem = guarded(self.problem)
            folder = RunFolder(out, resume) if isinstance(out, Path) else out
            if folder is not None and folder.load_config() is None:
                names = ("optimizer", "step_size", "tolerance", "seed")
                folder.save_config({name: getattr(options, name) for name in names})
            run = _Run(self, session, folder)
            if resume and folder is not None:
                run.restore()
            run.save()  # what cannot be stored is refused before the work, not after it
            with Interrupts.active() as interrupts, interrupts.held():
                result = run.until(options.updates, interrupts)
        except BaseException as error:
            session.close(wait=not isinstance(error, KeyboardInterrupt))
            raise
        session.close()
        return result


class _Run:
    """The loop: update, audit, log, save; whatever ends it, nothing computed is lost."""

    def __init__(self, trainer: Trainer, session: Session, folder: RunFolder | None) -> None:
        options = trainer.options
        self.trainer, self.session, self.folder = trainer, session, folder
        self.upper = make_upper_level(session, options)
        self.updates = 0
        self.start_factor: float | None = None if options.tune_start else 1.0
        self.rows: list[dict[str, Any]] = []
        self._identity = {} if folder is None else {**options.lasting(), **_described(session)}

    def until(self, updates: int | None, interrupts: Interrupts) -> TrainResult:
        self.session.clock.start()
        try:
            if self.start_factor is None:
                self.start_factor = tune_start(self.session)
            while updates is None or self.updates < updates:
                interrupts.check()
                row = self._update(step_factor(self.updates, updates))
                self.updates += 1
                self._log(row)
                if is_milestone(self.updates):
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

    def _update(self, factor: float) -> dict[str, Any]:
        """One update as a whole, or none."""
        learnable = self.session.problem.learnable()
        parameters = {name: p.detach().clone() for name, p in learnable.items()}
        session, upper = self.session.snapshot(), copy.deepcopy(self.upper.state_dict())
        try:
            return self.upper.update(factor)
        except BaseException:
            with torch.no_grad():
                for name, p in learnable.items():
                    p.copy_(parameters[name])
            self.session.restore(session)
            self.upper.load_state_dict(upper)
            raise

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
        if self.updates == 1 and self.trainer.options.tune_start:
            row["start_factor"] = self.start_factor
        validate, on_update = self.trainer.validate, self.trainer.on_update
        if validate is not None and is_milestone(self.updates):
            row["psnr"] = validate()
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
                "start_factor": self.start_factor,
                "identity": self._identity,
                "kernels": chosen_kernels(),
            }
        )

    def restore(self) -> None:
        """Go on from the folder's checkpoint, if it has one.

        Raises
        ------
        ConfigError: the run was begun with other data or options. CheckpointError: the checkpoint does not fit.
        """
        assert self.folder is not None
        state = self.folder.load_checkpoint()
        if state is None:
            return
        self._check_identity(state.get("identity", {}))
        try:
            self._load(state)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, LearnregError):
                raise
            raise CheckpointError(
                f"the checkpoint in {self.folder.path} does not fit this version ({type(error).__name__}: {error}); "
                "start again with another --out."
            ) from error
        self.rows = self.folder.rows()

    @torch.no_grad()
    def _load(self, state: dict[str, Any]) -> None:
        assert self.folder is not None
        for name, p in self.session.problem.learnable().items():
            stored = state["parameters"].get(name)
            if stored is None or stored.shape != p.shape:
                raise CheckpointError(
                    f"the checkpoint in {self.folder.path} has no parameter {name} of shape {tuple(p.shape)}."
                )
            p.copy_(stored)
        adopt_kernels(state.get("kernels", {}))
        self.session.load_state_dict(state["session"])
        self.upper.load_state_dict(state["upper"])
        self.updates = int(state["updates"])
        # checkpoints of earlier versions have no factor; what has been updated is not scaled again
        self.start_factor = state.get("start_factor", 1.0 if self.updates else self.start_factor)

    def _check_identity(self, stored: Mapping[str, Any]) -> None:
        """ConfigError where data or options differ from those of the run so far."""
        assert self.folder is not None
        for name, before in stored.items():
            now = self._identity.get(name)
            if now != before:
                differs = "random" not in (now, before) and name == "content"
                what = "other training samples" if differs else f"{name}={before!r}, not {now!r}"
                raise ConfigError(
                    f"{self.folder.path}: the run was begun with {what}; a resumed run goes on with the same data and "
                    "options. Start a new one with another --out."
                )


def _described(session: Session) -> dict[str, Any]:
    """What tells apart the problems and data of runs."""
    problem, operator = session.problem, session.problem.operator
    return {
        "regularizer": type(problem.regularizer).__name__,
        "operator": f"{type(operator).__name__} {tuple(operator.domain_shape)} -> {tuple(operator.range_shape)}",
        "data_term": type(problem.data_term).__name__,
        "ridge": "learned" if isinstance(problem.ridge, torch.nn.Parameter) else problem.ridge_value,
        "noise_level": problem.noise_level,
        **session.source.digest(),
    }
