"""Where the lower level was left at each sample of a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from learnreg.hypergradients.compute import Start
from learnreg.training.samples import Sample

__all__ = ["WarmStarts"]

_BYTES = 512 * 1024**2
_NAMES = ("x", "X", "z", "Z")


class WarmStarts:
    """States and adjoint states by the keys of samples, at most ``limit`` bytes of them, which checkpoints hold, too;
    samples beyond that start cold at every visit, as those without a key do."""

    def __init__(self, limit: int = _BYTES) -> None:
        self._limit, self._bytes = limit, 0
        self._states: dict[int, Start] = {}

    def starts(self, samples: Sequence[Sample], b: Tensor) -> Start:
        """Earlier states of samples of one kind, with measurements b; one that is new has no latent variables, so that
        they are guessed for all."""
        shape = tuple(samples[0].x_true.shape)
        cold = b if tuple(b.shape[1:]) == shape else b.new_zeros(b.shape[0], *shape)
        states = [self._known(s) or Start(cold[k], torch.zeros_like(cold[k])) for k, s in enumerate(samples)]
        columns = ([getattr(state, name) for state in states] for name in _NAMES)
        x, X, z, Z = (None if any(v is None for v in column) else torch.stack(column) for column in columns)
        assert x is not None
        assert X is not None
        return Start(x, X, z, Z).part(slice(None), 1.0 / len(samples))

    def keep(self, samples: Sequence[Sample], state: Start) -> None:
        """Remember states, and adjoint states of the sum over samples: a mean's carry 1/batch, which varies."""
        size = 2 * sum(v[0].numel() * v.element_size() for v in (state.x, state.z) if v is not None)
        for k, sample in enumerate(samples):
            if sample.key is None:
                continue
            if self._known(sample) is None:
                if sample.key in self._states or self._bytes + size > self._limit:
                    continue
                self._bytes += size
            self._states[sample.key] = state.part(k, len(samples))

    def _known(self, sample: Sample) -> Start | None:
        """The state of a sample; none of an image of another shape, where a data set draws them anew."""
        found = None if sample.key is None else self._states.get(sample.key)
        return found if found is not None and found.x.shape == sample.x_true.shape else None

    def snapshot(self) -> dict[int, Start]:
        """What is remembered now."""
        return dict(self._states)

    def restore(self, states: Mapping[int, Start]) -> None:
        """Remember what ``snapshot`` returned, and nothing else."""
        self._states = dict(states)
        self._bytes = sum(_size(state) for state in states.values())

    def state_dict(self) -> dict[str, Any]:
        """Stacks of the states of each shape, with their keys."""
        groups: dict[Any, list[int]] = {}
        for key, state in self._states.items():
            kind = tuple(None if (v := getattr(state, name)) is None else (v.shape, v.dtype) for name in _NAMES)
            groups.setdefault(kind, []).append(key)
        return {"warm": [{"keys": keys, **self._stacks(keys)} for keys in groups.values()]}

    def _stacks(self, keys: list[int]) -> dict[str, Tensor | None]:
        first = self._states[keys[0]]
        return {
            name: None if getattr(first, name) is None else torch.stack([getattr(self._states[k], name) for k in keys])
            for name in _NAMES
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        states: dict[int, Start] = {}
        for group in state.get("warm", ()):  # checkpoints of earlier versions have none
            for k, key in enumerate(group["keys"]):
                x, X, z, Z = (None if group[name] is None else group[name][k] for name in _NAMES)
                assert x is not None
                assert X is not None
                states[key] = Start(x, X, z, Z)
        self.restore(states)


def _size(state: Start) -> int:
    return sum(v.numel() * v.element_size() for v in (getattr(state, name) for name in _NAMES) if v is not None)
