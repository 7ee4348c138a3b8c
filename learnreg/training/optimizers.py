"""Upper-level methods of the trainer: each ``update`` makes one step of the parameters."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from learnreg.linear.arguments import check_one_of
from learnreg.training.certified_descent import CertifiedDescent
from learnreg.training.options import TrainingOptions
from learnreg.training.session import Evaluation, Session
from learnreg.training.tolerances import Audit

__all__ = ["UPPER_LEVELS", "Adam", "Adaptive", "QuasiNewton", "UpperLevel"]


class UpperLevel(ABC):
    """Makes steps of the parameters of ``session.problem``."""

    def __init__(self, session: Session, options: TrainingOptions) -> None:
        self.session, self.step_size = session, options.step_size

    @abstractmethod
    def update(self, factor: float) -> dict[str, Any]:
        """One step; returns what to log (at least ``loss``). Raises TimeUp when the time ends within the step, which
        has to be undone then.

        factor: of the step size, from the schedule.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """State to resume from."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume."""

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        return list(self.session.problem.learnable().values())


def _row(evaluation: Evaluation) -> dict[str, Any]:
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in evaluation.gradient.values()))
    row: dict[str, Any] = {
        "loss": evaluation.loss,
        "train_psnr": -10.0 * math.log10(max(evaluation.mean_square, 1e-30)),
        "gradient_norm": norm,
        "lower_level_steps": evaluation.lower_level_steps,
    }
    return row | _audit_row(evaluation.audit)


def _audit_row(audit: Audit | None) -> dict[str, Any]:
    if audit is None:
        return {}
    return {
        "relative_error_bound": audit.relative_error,
        "relative_error_estimate": audit.distance,
        "certified": audit.certified,
        "audit_reference_bound": audit.reference_bound,
    }


class Adam(UpperLevel):
    """Adam on minibatches, its step size falling as the schedule says."""

    def __init__(self, session: Session, options: TrainingOptions) -> None:
        super().__init__(session, options)
        self._optimizer = torch.optim.Adam(self.parameters, lr=self.step_size, betas=(0.9, 0.95))

    def update(self, factor: float) -> dict[str, Any]:
        self.session.clock.check()
        evaluation = self.session.evaluate(self.session.source.next_batch())
        for name, p in self.session.problem.learnable().items():
            p.grad = evaluation.gradient[name]
        for group in self._optimizer.param_groups:
            group["lr"] = self.step_size * factor
        self._optimizer.step()
        self.session.problem.project_()
        return _row(evaluation)

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._optimizer.load_state_dict(state["optimizer"])


class QuasiNewton(UpperLevel):
    """L-BFGS with a strong Wolfe line search on a fixed set of samples, the first ``samples`` of the dataset."""

    def __init__(self, session: Session, options: TrainingOptions) -> None:
        super().__init__(session, options)
        self._samples = session.source.first(options.most_samples)
        self._best: tuple[float, list[Tensor]] | None = None
        self._at: list[Tensor] = []
        self._evaluation: Evaluation | None = None
        self._scale: float | None = None
        self._restart()

    def _restart(self) -> None:
        self._optimizer = torch.optim.LBFGS(
            self.parameters,
            lr=1.0,
            max_iter=1,
            max_eval=8,
            history_size=40,
            tolerance_grad=0.0,
            tolerance_change=0.0,
            line_search_fn="strong_wolfe",
        )

    def _closure(self) -> Tensor:
        """The loss over its first value, so that steps do not depend on its units; the gradient in ``.grad``."""
        current = [p.detach() for p in self.parameters]
        if self._evaluation is None or any(not torch.equal(p, q) for p, q in zip(current, self._at, strict=True)):
            self.session.clock.check()
            self._evaluation = self.session.evaluate(self._samples)
            self._at = [p.clone() for p in current]
            if self._best is None or self._evaluation.loss < self._best[0]:
                self._best = (self._evaluation.loss, self._at)
        if self._scale is None:
            self._scale = 100.0 / max(self._evaluation.loss, 1e-30)
        for name, p in self.session.problem.learnable().items():
            p.grad = self._evaluation.gradient[name] * self._scale
        return torch.tensor(self._evaluation.loss * self._scale)

    def update(self, factor: float) -> dict[str, Any]:
        before = math.inf if self._best is None else self._best[0]
        self._optimizer.step(self._closure)  # type: ignore[no-untyped-call]
        self.session.problem.project_()
        evaluation = self._evaluation
        assert self._best is not None
        assert evaluation is not None
        if not self._best[0] < before:
            # a loss computed too roughly may be too low to be beaten: judge the best point again, more accurately
            self._return_to_best()
            self._restart()
            self._best = None
            self.session.target *= 0.5
            self.session.tolerances = self.session.tolerances.adapted(2.0 * self.session.target, self.session.target)
        return _row(evaluation)

    @torch.no_grad()
    def _return_to_best(self) -> None:
        if self._best is not None:
            for p, value in zip(self.parameters, self._best[1], strict=True):
                p.copy_(value)
        self._evaluation = None

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizer": self._optimizer.state_dict(),
            "best": self._best,
            "at": self._at,
            "evaluation": None if self._evaluation is None else dataclasses.asdict(self._evaluation),
            "scale": self._scale,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._restart()
        if not state:  # of earlier versions: curvature pairs are found anew
            return
        self._optimizer.load_state_dict(state["optimizer"])
        self._best, self._at, self._scale = state["best"], state["at"], state["scale"]
        evaluation = state["evaluation"]
        if evaluation is not None:
            audit = evaluation["audit"]
            evaluation = Evaluation(**{**evaluation, "audit": None if audit is None else Audit(**audit)})
        self._evaluation = evaluation


class Adaptive(UpperLevel):
    """Certified descent: every accepted step provably lowers the loss of its samples."""

    def __init__(self, session: Session, options: TrainingOptions) -> None:
        super().__init__(session, options)
        self._steps = CertifiedDescent(session, options)

    def update(self, factor: float) -> dict[str, Any]:
        step, samples, audit = self._steps.step(factor)
        lower, upper = step.loss_interval
        return {
            "loss": step.loss,
            "loss_lower": lower,
            "loss_upper": upper,
            "gradient_norm": step.gradient_norm,
            "decrease_certified": step.certified,
            "accepted": step.accepted,
            "step_size": step.step_size,
            "direction": step.direction,
            "certified_decrease": step.decrease,
            "samples": samples,
            **_audit_row(audit),
        }

    def state_dict(self) -> dict[str, Any]:
        return self._steps.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        # of the first version: the descent alone
        self._steps.load_state_dict(state if "descent" in state else {"descent": state})


UPPER_LEVELS: dict[str, type[UpperLevel]] = {"adam": Adam, "lbfgs": QuasiNewton, "adaptive": Adaptive}


def make_upper_level(session: Session, options: TrainingOptions) -> UpperLevel:
    """The upper-level method that the options name."""
    name = options.optimizer
    check_one_of(name, tuple(UPPER_LEVELS), "optimizer")
    return UPPER_LEVELS[name](session, options)
