"""``learnreg.train``: learn the regularizer of a lower-level problem from pairs (b, x_true)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from learnreg.errors import ConfigError
from learnreg.hypergradients.base import HypergradientMethod
from learnreg.hypergradients.implicit import tightening
from learnreg.linear.arguments import check_flag, check_type, real_number, shown
from learnreg.linear.paths import given_path
from learnreg.losses import SquaredError, UpperLoss
from learnreg.lower_level.problem import LowerLevelProblem
from learnreg.progress import hidden
from learnreg.training.callbacks import ByFirst, Callback, Callbacks
from learnreg.training.group import Group
from learnreg.training.guard import examine_problem, guarded, take_as_they_are
from learnreg.training.held_out import HeldOut, held_apart
from learnreg.training.identity import identity_of
from learnreg.training.interrupts import Interrupts
from learnreg.training.options import NoiseWeightingName, OptimizerName, SamplingName, ScheduleName, TrainingOptions
from learnreg.training.process_group import joined
from learnreg.training.progress import Progress
from learnreg.training.result import TrainResult
from learnreg.training.run import Run
from learnreg.training.run_folder import RunFolder, contents_of
from learnreg.training.run_report import Samples, can_report, report_run
from learnreg.training.session import Session
from learnreg.training.shared_folder import folder_of
from learnreg.training.sources import TrainingData

__all__ = ["OptimizerName", "Trainer", "train"]

_FEW = 8


def train(
    problem: LowerLevelProblem,
    dataset: TrainingData,
    loss: Callable[[Tensor], UpperLoss] = SquaredError,
    out: str | Path | RunFolder | None = None,
    minutes: float | None = None,
    batch_size: int | None = None,
    *,
    updates: int | None = None,
    epochs: float | None = None,
    method: HypergradientMethod | None = None,
    tolerance: float = 1e-1,
    optimizer: OptimizerName = "adam",
    step_size: float = 2e-2,
    samples: int | None = None,
    sampling: SamplingName = "growing",
    schedule: ScheduleName = "steady",
    audit_every: int = 10,
    chunk_size: int | None = None,
    seed: int = 0,
    resume: bool = False,
    force: bool = False,
    check_operator: bool = True,
    tune: bool = True,
    config: Mapping[str, Any] | None = None,
    validate: Callable[[], float] | None = None,
    on_update: Callable[[Mapping[str, Any]], None] | None = None,
    validation: float | TrainingData | None = None,
    patience: int | None = None,
    noise_weighting: NoiseWeightingName = "none",
    pretraining: int = 0,
    callbacks: Callback | Iterable[Callback] = (),
    report: bool = True,
    progress: bool = True,
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
    began. Later processes take them from the cache folder of this machine; without one (``LEARNREG_CACHE=``) only
    ``torch.use_deterministic_algorithms(True)``, which measures none, makes two processes choose alike.

    Parameters
    ----------
    problem: changed in place.
    seed: of the batches.
    dataset: map-style, item i = (b, x_true) or (b, x_true, sigma) without batch axis, read from several threads; a list
        of such items; stacks (B, X) or (B, X, sigmas) with one entry for each sample; a DataLoader, whose batches are
        taken as it samples and collates them; or an iterable data set. Tensors or NumPy arrays. Images may differ in
        size where the operator knows all of them, as ``Identity`` and ``Blur`` do; those of one size share a batch.
        sigma, a positive number, is the noise level for ``regularizer.at``.
    loss: maps a batch of ground truths to an ``UpperLoss``.
    out: run folder (model.safetensors, config.toml, metrics.jsonl, report.html, checkpoint/; with ``validate`` or
        ``validation`` best.safetensors, the model at its best value); None keeps everything in memory, as a regularizer
        without ``config()`` needs. One run at a time holds it.
    minutes: of upper-level training at most; 5 where neither minutes nor updates are given.
    batch_size: 16, or that of the DataLoader.
    updates: so many, unless the minutes end before. A resumed run may ask for more of either.
    epochs: so many passes over the data at most, in minibatches of "adam" and of adaptive "minibatch".
    method: of the hypergradients; ``Implicit()`` by default, the fastest one as measured.
    tolerance: relative error of the hypergradients, held by audits: certified hypergradients of a few samples, which
        bound the error of the gradients that training used for these and so set the lower-level tolerances. With
        "adaptive" the decrease of every step is certified instead.
    optimizer: "adam" (minibatches), "lbfgs" (the first ``samples`` items at once) or "adaptive" (certified descent on
        them, or on minibatches).
    step_size: initial, of Adam and of adaptive descent.
    samples: of "lbfgs" and "adaptive", the first ones of the data at most; None: 512 of a growing sample, else 64.
    sampling: of "adaptive": "growing" (from 16 of the samples to all of them), "fixed" (all of them) or "minibatch".
    schedule: of the step sizes. "steady": they fall by the inverse square root of the updates so far, so that a run of
        N updates is the beginning of a longer one. "annealed": by a half cosine over updates or epochs, which it needs;
        a run that the minutes end before is warned of.
    audit_every: updates from one audit to the next; of "adaptive", from one certified gradient to the next.
    chunk_size: samples that are solved together, by one thread of one worker; None: the batch over the threads of a
        worker, 16 at most. The last bits of what is computed depend on it, and on the number of workers in no way. A
        resumed run keeps it.
    resume: go on with the run that ``out`` holds, with the same data and options but minutes, updates and epochs.
    force: with ``resume``, also with other data or options, where what is stored fits them; each is named in a warning
        of the logger "learnreg".
    check_operator: examine operators and regularizers that are not this package's own before any work, with a few
        applications (``learnreg.testing``); False: take them as they are (``examine = False``), uncertified.
    tune: begin at the factor of the regularizer that has the least loss on four samples, instead of 1, logged as
        ``start_factor``, and with weights of its filters that a few gradients improve.
    config: stored with the model.
    validate: called now and then; its value is logged as ``psnr``.
    on_update: gets each logged row.
    validation: a share of the items, drawn by the seed, that is held out from training, or a data set of its own. Now
        and then, by the number of updates, the mean loss and PSNR of up to 128 of them are logged as
        ``validation_loss`` and ``validation_psnr``. A DataLoader or a stream cannot be divided.
    patience: early stopping, by validation (or by ``validate``, where more is better): the run ends at the first
        measurement that many updates after the best one, and returns the best parameters.
    noise_weighting: of samples (b, x_true, sigma): "inverse-sigma" divides the loss of each by its sigma,
        "inverse-variance" by sigma², lest high noise levels outweigh the low ones, whose errors are smaller.
    pretraining: steps of score matching on the ground truths of the first 512 items before the first update (one
        gradient step with the regularizer is to denoise them; no lower-level problem is solved), after which its
        smoothings and weights are stretched to suit the task. A step costs a few applications: it is the cheapest start
        for regularizers with many parameters. Uncertified, as no bound is needed there.
    callbacks: :class:`learnreg.Callback` objects, such as ``learnreg.TensorBoard``, told of updates and checkpoints.
    report: with ``out``, write report.html and figures/*.pdf there at the end, as the command line does: on the samples
        held out for validation, or else on some of those trained on. Needs the extra ``images``; without it, that is
        said before the work, and there is none.
    progress: show how far it is on stderr: a bar on a terminal or in a notebook, else a line every 30 seconds.
    max_updates: former name of ``updates``.

    Raises
    ------
    ConfigError, DataError, ShapeError: bad input, a run that was begun with other data or options, or one that another
        process is writing. CheckpointError: a checkpoint that cannot be used. OperatorError: an operator of your own
        fails a check before training, or raises or makes NaN in the middle of it. SolverError: another numerical
        failure. The last parameters and the checkpoint are saved first, so that ``resume`` goes on from there.
        KeyboardInterrupt: on Ctrl-C, SIGTERM or SIGHUP, after the update in progress and with everything saved; a
        second one acts at once.
    """
    if max_updates is not None:
        warnings.warn("train(max_updates=...): the option is called updates now.", DeprecationWarning, stacklevel=2)
        if updates is not None:
            raise ConfigError(f"train(updates={updates}, max_updates={max_updates}): give updates alone.")
    for name, flag in (("report", report), ("progress", progress)):
        check_flag(flag, f"train({name})")
    is_share = isinstance(validation, (int, float)) and not isinstance(validation, bool)
    share = real_number(validation, "train(validation)") if is_share else None
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
        chunk_size=chunk_size,
        epochs=epochs,
        schedule=schedule,
        validation=share or 0.0,
        patience=patience,
        noise_weighting=noise_weighting,
        pretraining=pretraining,
    )
    bar = Progress(chosen.seconds / 60.0, chosen.updates, at_once=False)
    trainer = Trainer(
        problem,
        dataset,
        loss,
        chosen,
        config=config,
        validate=validate,
        callbacks=Callbacks(callbacks, on_update, bar),
        validation=validation if share is None else None,  # type: ignore[arg-type]
        check_operator=check_operator,
    )
    reporting = report and out is not None and can_report()
    with hidden(not progress):
        with bar:
            result = trainer.run(out, resume, force)
        if reporting and result.updates and trainer.folder is not None:
            report_run(trainer.folder.path, problem, chosen, trainer.samples, result)
    if result.updates == 0:
        warnings.warn("train: the time was over before the first update; give more minutes.", stacklevel=2)
    elif result.was_cut and schedule == "annealed":
        warnings.warn(
            f"train: the minutes were over after {result.updates} of {result.asked} updates, before step sizes had "
            "fallen to their end; give more minutes and resume=True, or fewer updates.",
            stacklevel=2,
        )
    return result


class Trainer:
    """A training run of given options; ``run`` starts it. The parameters are those of ``train``; table: what
    config.toml says.

    folder: what ``run`` wrote to. samples: a few of those trained on, and those that were not.
    """

    def __init__(
        self,
        problem: LowerLevelProblem,
        dataset: TrainingData,
        loss: Callable[[Tensor], UpperLoss],
        options: TrainingOptions,
        *,
        config: Mapping[str, Any] | None = None,
        validate: Callable[[], float] | None = None,
        callbacks: Callback | None = None,
        validation: TrainingData | None = None,
        check_operator: bool = True,
        table: Mapping[str, Any] | None = None,
    ) -> None:
        check_type(problem, LowerLevelProblem, "train(problem)", "a LowerLevelProblem")
        if not problem.learnable():
            raise ConfigError(
                "train: no parameter of the problem requires a gradient. Those of a regularizer are what "
                "named_parameters() yields: modules in a plain list are not seen, those in an nn.ModuleList are."
            )
        check_flag(check_operator, "train(check_operator)")
        if validate is not None and not callable(validate):
            raise ConfigError(f"train(validate={shown(validate)}): expected a function, or None.")
        if options.patience is not None and not options.validation and validation is None and validate is None:
            raise ConfigError(
                f"train(patience={options.patience}): nothing is measured on samples that are held out; give "
                "validation=0.1, or a data set."
            )
        self.problem, self.dataset, self.loss, self.options = problem, dataset, loss, options
        self.config, self.validate, self.callbacks = config, validate, callbacks or Callback()
        self.check_operator, self.table, self.validation = check_operator, table, validation
        self.folder: RunFolder | None = None
        self.samples = Samples((), ())

    def run(self, out: str | Path | RunFolder | None = None, resume: bool = False, force: bool = False) -> TrainResult:
        """Train until the time or the updates are used up; the last parameters are saved whatever ends the run."""
        with joined() as group:
            return self._run_in(group, out, resume, force)

    def _run_in(self, group: Group, out: str | Path | RunFolder | None, resume: bool, force: bool) -> TrainResult:
        check_flag(resume, "train(resume)")
        check_flag(force, "train(force)")
        if force and not resume:
            raise ConfigError("train(force=True): it is for resume=True. To start a new run, choose another out.")
        if not (out is None or isinstance(out, RunFolder)):
            out = given_path(out, "train(out)")
        if resume and (out is None or (isinstance(out, Path) and not group.first(lambda: contents_of(out)))):
            where = "no out, where the run is" if out is None else f"no run in {out}"
            raise ConfigError(f"train(resume=True): {where}. To start a new run, leave resume out.")
        folder = folder_of(out, resume, group) if isinstance(out, Path) else out
        with nullcontext() if folder is None else folder.held():
            data = self.dataset
            self.folder = folder if group.rank == 0 else None
            if self.options.validation:
                data, self.validation = held_apart(data, self.options.validation, self.options.seed)
            session = Session.of(self.problem, data, self.loss, self.options, group)
            try:
                result = self._run(session, folder, resume, force)
            except BaseException as error:
                session.close(wait=not isinstance(error, KeyboardInterrupt))
                if group.rank == 0:
                    self._tell_of_the_end(error)
                raise
            session.close()
        ByFirst(self.callbacks, group).on_end(result)
        return result

    def _tell_of_the_end(self, error: BaseException) -> None:
        """What ended the run matters more than what a callback makes of it."""
        try:
            self.callbacks.on_end(None)
        except Exception as another:
            error.add_note(f"A callback failed, too: {another}")

    def _run(self, session: Session, folder: RunFolder | None, resume: bool, force: bool) -> TrainResult:
        options, group = self.options, session.group
        held_out = None if self.validation is None else HeldOut(self.validation, session)
        if self.check_operator:
            examine_problem(self.problem, lambda: session.source.first(1)[0].b.dtype)
        else:
            take_as_they_are(self.problem)
        session.problem = guarded(self.problem)
        session.share_problem()
        if folder is not None:
            self.samples = Samples(session.source.first(_FEW), () if held_out is None else held_out.samples)
        limits = [] if options.updates is None else [options.updates]
        if options.epochs is not None:
            limits.append(session.source.updates_in(options.epochs))
        run = Run(
            session,
            options,
            folder,
            self.problem,
            config=self.config,
            validate=None if self.validate is None else group.by_first(self.validate),
            callbacks=ByFirst(self.callbacks, group),
            held_out=held_out,
        )
        group.check_same("options or data", lambda: identity_of(session, options))
        group.share_kernels()
        if resume:
            run.restore(force)
        if folder is not None and (self.table is not None or folder.load_config() is None):
            names = ("optimizer", "step_size", "tolerance", "seed")
            folder.save_config(self.table or {name: getattr(options, name) for name in names})
        run.save()  # what cannot be stored is refused before the work, not after it
        with Interrupts.active() as interrupts, interrupts.held(group.largest):
            return run.until(min(limits, default=None), interrupts)
