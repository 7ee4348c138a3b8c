"""The loop of a training run: update, log, save; resumed from where it was left."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch

from learnreg.convolutions.correlation import adopt_kernels, chosen_kernels
from learnreg.errors import CheckpointError, LearnregError, OperatorError, WorkerError
from learnreg.lower_level.problem import LowerLevelProblem
from learnreg.training.callbacks import Callback
from learnreg.training.clock import TimeUp
from learnreg.training.early_stopping import EarlyStopping
from learnreg.training.environment import MADE_WITH, environment
from learnreg.training.held_out import HeldOut
from learnreg.training.identity import DATA, differences, identity_of, mismatch
from learnreg.training.interrupts import Interrupts
from learnreg.training.kernel_choices import adopt_measured, remember_measured
from learnreg.training.optimizers import make_upper_level
from learnreg.training.options import TrainingOptions
from learnreg.training.pretraining import pretrain
from learnreg.training.result import EndedBy, TrainResult
from learnreg.training.run_folder import RunFolder
from learnreg.training.schedule import is_milestone, is_validated, step_factor
from learnreg.training.session import Session
from learnreg.training.start_tuning import tune_start

__all__ = ["Run", "TrainResult"]

_LOGGER = logging.getLogger("learnreg")


class Run:
    """The loop: update, audit, log, save; whatever ends it, nothing computed is lost.

    Parameters
    ----------
    problem: what is stored as the model; what is trained shares its parameters.
    config, validate: see ``learnreg.train``. callbacks: what is told of the run. held_out: samples to measure.
    """

    def __init__(
        self,
        session: Session,
        options: TrainingOptions,
        folder: RunFolder | None,
        problem: LowerLevelProblem,
        *,
        config: Mapping[str, Any] | None = None,
        validate: Callable[[], float] | None = None,
        callbacks: Callback | None = None,
        held_out: HeldOut | None = None,
    ) -> None:
        self.session, self.options, self.folder, self.problem = session, options, folder, problem
        self.config, self.validate, self.held_out = config, validate, held_out
        self.callbacks, self.stopping = callbacks or Callback(), EarlyStopping(options.patience)
        self.upper = make_upper_level(session, options)
        self.updates = 0
        self.last: int | None = None
        """Where the schedule ends, which is measured, too: step sizes fall to it."""
        self.start_factor: float | None = None
        self.rows: list[dict[str, Any]] = []
        self._environment = environment(options.workers)
        self._identity = {} if folder is None else identity_of(session, options)
        adopt_measured()

    def until(self, updates: int | None, interrupts: Interrupts) -> TrainResult:
        """Go on until so many updates are made, or the time is over."""
        ended_by: EndedBy = "updates"
        length = self.last = updates if self.options.schedule == "annealed" else None
        self.session.clock.start()
        try:
            if self.start_factor is None:
                self.start_factor = self._start()
            while (updates is None or self.updates < updates) and not self.stopping.is_over:
                interrupts.check()
                row = self._update(step_factor(self.updates, length))
                self.updates += 1
                self._log(row)
                if is_milestone(self.updates):
                    self.save()
        except TimeUp:
            ended_by = "minutes"
        except OperatorError as error:
            self.session.group.settle(error)
            raise OperatorError(f"{error} {self._rescue()}", error.failed_property) from error
        except BaseException as error:
            self.session.group.settle(error)
            error.add_note(self._rescue())
            raise
        self.save()
        return self._result("patience" if self.stopping.is_over else ended_by, updates)

    def _start(self) -> float:
        """Make the parameters what the first update starts from; the factor that the regularizer was multiplied by."""
        options = self.options
        if options.pretraining:
            pretrain(self.session, options.pretraining, options.seed)
        return tune_start(self.session) if options.tune_start else 1.0

    def _result(self, ended_by: EndedBy, asked: int | None) -> TrainResult:
        """Of the last parameters, or of the best ones, where early stopping keeps them."""
        session, folder = self.session, self.folder
        chosen = self.stopping.restore_best(session.problem.learnable())
        if chosen and folder is not None:
            self._save_model(folder)
        return TrainResult(
            session.problem.regularizer,
            None if folder is None else folder.model_path,
            self.rows,
            self.updates,
            session.clock.elapsed,
            session.applications,
            ended_by,
            asked,
            self.stopping.best_update if chosen else None,
        )

    def _update(self, factor: float) -> dict[str, Any]:
        """One update as a whole, or none."""
        learnable = self.session.problem.learnable()
        parameters = {name: p.detach().clone() for name, p in learnable.items()}
        session, upper = self.session.snapshot(), copy.deepcopy(self.upper.state_dict())
        random = torch.get_rng_state()  # data sets may draw from it
        try:
            return self.upper.update(factor)
        except BaseException:
            with torch.no_grad():
                for name, p in learnable.items():
                    p.copy_(parameters[name])
            self.session.restore(session)
            self.upper.load_state_dict(upper)
            torch.set_rng_state(random)
            raise

    def _rescue(self) -> str:
        """Save what there is, and say where it is and how to go on."""
        when = f"It happened in update {self.updates + 1}"
        if self.folder is None:
            return f"{when}; the problem's regularizer holds what the updates before it learned."
        try:
            self.save()
        except WorkerError:  # some states are lost with the worker that had them: without them no bits are the same
            return f"{when}. {self.folder.path} holds the model; --resume goes on from the checkpoint before."
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
        if self.updates == 1 and self.options.tune_start:
            row["start_factor"] = self.start_factor
        try:
            if is_milestone(self.updates) or self.updates == self.last:
                self._measure(row)
        finally:  # whatever a validation raises, the update is made
            self.rows.append(row)
            if self.folder is not None:
                self.folder.log(row)
        self.callbacks.on_update(row)

    def _measure(self, row: dict[str, Any]) -> None:
        """How good the parameters are on what was not trained on."""
        if self.validate is not None and (is_validated(self.updates) or self.updates == self.last):
            row["psnr"] = self.validate()
        if self.held_out is not None:
            row |= self.session.group.first(self.held_out.measure)
        self.stopping.see(self.updates, row, self.session.problem.learnable())

    def save(self) -> None:
        """Model, checkpoint, and the convolution kernels in use: measurements choose them, so that two runs of the same
        options may round differently. After a validation that is the best so far both are kept as the best ones."""
        remember_measured()
        if self.folder is None:
            return
        self._save_model(self.folder)
        self.folder.save_kernels(chosen_kernels())
        path = self.folder.save_checkpoint(
            {
                "parameters": {name: p.detach() for name, p in self.session.problem.learnable().items()},
                "session": self.session.state_dict(),
                "upper": self.upper.state_dict(),
                "updates": self.updates,
                "start_factor": self.start_factor,
                "stopping": self.stopping.state_dict(),
                "random": torch.get_rng_state(),
                "identity": self._identity,
                MADE_WITH: self._environment,
                "kernels": chosen_kernels(),
            },
            best=self.stopping.best is not None and self.stopping.best_update == self.updates,
        )
        self.callbacks.on_checkpoint(path)

    def _save_model(self, folder: RunFolder) -> None:
        folder.save_model(self.problem, {MADE_WITH: self._environment, **(self.config or {})})

    def restore(self, force: bool = False) -> None:
        """Go on from the folder's checkpoint, if it has one; ``force``: also with other data or options.

        Raises
        ------
        ConfigError: the run was begun with other data or options. CheckpointError: the checkpoint does not fit.
        """
        assert self.folder is not None
        state = self.folder.load_checkpoint()
        if state is None:
            return
        if self.options.chunk_size is None:  # that of the run, whatever threads there are now
            self.session.chunk_size = state.get("identity", {}).get("chunk_size", self.session.chunk_size)
            self._identity["chunk_size"] = self.session.chunk_size
        changed = differences(state.get("identity", {}), self._identity)
        if changed and not force:
            raise mismatch(self.folder.path, list(changed.values()))
        for line in changed.values():
            _LOGGER.warning("%s: goes on with other data or options: %s", self.folder.path, line)
        try:
            self._load(state, changed)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            if isinstance(error, LearnregError):
                raise
            raise self._misfit(f"does not fit this version ({type(error).__name__}: {error})") from error
        self.rows = self.folder.rows()

    def _misfit(self, what: str) -> CheckpointError:
        assert self.folder is not None
        return CheckpointError(f"{self.folder.resumed_from}: this checkpoint {what}; start again with another --out.")

    @torch.no_grad()
    def _load(self, state: dict[str, Any], changed: Collection[str]) -> None:
        """Take over what a checkpoint holds, but what is of the data or options that changed."""
        for name, p in self.session.problem.learnable().items():
            stored = state["parameters"].get(name)
            if stored is None or stored.shape != p.shape:
                raise self._misfit(f"has no parameter {name} of shape {tuple(p.shape)}")
            if not bool(torch.isfinite(stored).all()):
                raise self._misfit(f"holds NaN or infinite numbers in {name}")
            p.copy_(stored)
        adopt_kernels(state.get("kernels", {}))
        self.session.load_state_dict(state["session"], same_data=not {*DATA, "seed", "batch_size"} & {*changed})
        if not {"optimizer", "samples", "sampling", *DATA} & {*changed}:
            self.upper.load_state_dict(state["upper"])
        self.updates = int(state["updates"])
        # checkpoints of earlier versions have no factor; what has been updated is not scaled again
        self.start_factor = state.get("start_factor", 1.0 if self.updates else self.start_factor)
        if "stopping" in state and not changed:
            self.stopping.load_state_dict(state["stopping"])
        if "random" in state:
            torch.set_rng_state(state["random"])
