"""Training of ridge regularizers as published in github.com/johertrich/LearnedRegularizers, called from outside.

Its script ``training_bilevel.py`` trains first by ``score_training`` (one gradient step is to denoise), then, from that
model, two scalars and at last everything by ``bilevel_training``. Here its own function runs the first of these, with
the options of its script, for a given time, and each epoch's weights are kept.
"""

from __future__ import annotations

import contextlib
import copy
import io
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from peers.implicit_differentiation import NAME, available
from torch import Tensor

__all__ = ["CROP", "EPOCHS", "NAME", "NOISE", "Epoch", "Ridge", "available", "pretrain", "ridge_of"]

NOISE, SCORE_NOISE, CROP, BATCH, EPOCHS = 0.1, 0.03, 128, 16, 300
"""The noise that it denoises, that of its first phase, sides of its crops, crops in a batch, epochs of that phase."""


@dataclass(frozen=True)
class Epoch:
    """After ``steps`` steps and ``seconds`` of CPU, all of its parameters."""

    steps: int
    seconds: float
    state: dict[str, Tensor]


@dataclass(frozen=True)
class Ridge:
    """Its regularizer sum_c weight_c huber(W_c x), of Huber's function with the curvature 1/smoothing_c in the middle
    and the slope 1: filters (n, k, k), weights and smoothing (n,)."""

    filters: Tensor
    weights: Tensor
    smoothing: Tensor


class _TimeIsUpError(Exception):
    pass


class _Batches:
    """Random crops, turned and flipped, as its script has them; tells the time at the start of each epoch."""

    def __init__(self, images: list[Tensor], seed: int, seconds: float, regularizer: torch.nn.Module) -> None:
        self.images, self.regularizer, self.limit = images, regularizer, seconds
        self.generator = torch.Generator().manual_seed(seed)
        self.kept: list[Epoch] = []
        self.steps, self.outside, self.began = 0, 0.0, 0.0

    def __len__(self) -> int:
        return len(self.images) // BATCH

    def __iter__(self) -> Iterator[Tensor]:
        self._keep()
        order = torch.randperm(len(self.images), generator=self.generator).tolist()
        for k in range(len(self)):
            before = time.process_time()
            batch = torch.stack([self._crop(self.images[i]) for i in order[BATCH * k : BATCH * (k + 1)]])
            self.outside += time.process_time() - before  # its script has processes of their own for these
            yield batch
            self.steps += 1

    def _keep(self) -> None:
        now = time.process_time()
        self.began = self.began or now
        spent = now - self.began - self.outside
        self.kept.append(Epoch(self.steps, spent, copy.deepcopy(self.regularizer.state_dict())))
        if spent >= self.limit:
            raise _TimeIsUpError
        self.outside += time.process_time() - now

    def _drawn(self, below: int) -> int:
        return int(torch.randint(below, (), generator=self.generator))

    def _crop(self, image: Tensor) -> Tensor:
        row, column = (self._drawn(side - CROP + 1) for side in image.shape[-2:])
        crop = image[..., row : row + CROP, column : column + CROP]
        crop = crop.flip(-1) if self._drawn(2) else crop
        crop = crop.flip(-2) if self._drawn(2) else crop
        return crop.rot90(1, (-2, -1)) if self._drawn(2) else crop


def pretrain(images: list[Tensor], seconds: float, seed: int = 0) -> list[Epoch]:
    """Its first phase for a convex ridge regularizer, for so many CPU seconds, on images (1, rows, columns)."""
    from priors import WCRR, ParameterLearningWrapper
    from training_methods.score_training import score_training

    torch.manual_seed(seed)
    regularizer = ParameterLearningWrapper(WCRR(sigma=0.1, weak_convexity=0.0, device="cpu"), device="cpu")
    batches = _Batches(images, seed, seconds, regularizer)
    with (
        contextlib.suppress(_TimeIsUpError),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        score_training(
            regularizer,
            batches,
            [],
            sigma=SCORE_NOISE,
            epochs=EPOCHS,
            lr=1e-2,
            lr_decay=0.1 ** (1 / EPOCHS),
            device="cpu",
            validation_epochs=EPOCHS + 1,
            adabelief=True,
            model_selection=False,
        )
    return batches.kept


@torch.no_grad()
def ridge_of(state: dict[str, Tensor]) -> Ridge:
    """Of its parameters, with the two scalars: R(x) = e^(a - 2 s) sum_c e^(-2 g_c - b) h(e^(b + g_c + s) W_c x)."""
    from priors import WCRR, ParameterLearningWrapper

    wrapper: Any = ParameterLearningWrapper(WCRR(sigma=0.1, weak_convexity=0.0, device="cpu"), device="cpu")
    wrapper.load_state_dict(state)
    inner, s = wrapper.regularizer.double(), float(wrapper.scale)
    impulse = torch.zeros(1, 1, inner.filter_size, inner.filter_size, dtype=torch.float64)
    impulse[0, 0, inner.filter_size // 2, inner.filter_size // 2] = 1.0
    # convolutions of torch correlate: the response to an impulse is the kernel turned by 180 degrees
    inner.dirac = inner.dirac.double()
    filters = inner.conv(impulse)[0].flip(-2, -1)
    gains = inner.scaling.double().flatten()
    curved = (float(inner.beta) + gains + s).exp()
    weights = (float(wrapper.alpha) - 2.0 * s - 2.0 * gains - float(inner.beta)).exp() * curved
    return Ridge(filters, weights, 1.0 / curved)
