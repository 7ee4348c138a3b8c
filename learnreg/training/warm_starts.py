"""Where the lower level was left at each sample of a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from learnreg.hypergradients.compute import Start
from learnreg.training.group import Group, Parcel
from learnreg.training.messages import hollow
from learnreg.training.samples import Sample

__all__ = ["WarmStarts", "hollow_start"]

_BYTES = 512 * 1024**2
_NAMES = ("x", "X", "z", "Z")


@dataclass(frozen=True, repr=False)
class _Kept(Start):
    """The state of a sample. owner: the worker of a group that computed it; the others have its shapes alone. None: all
    have it."""

    owner: int | None = None

    @classmethod
    def made(cls, parts: Sequence[Any], owner: int | None = None) -> _Kept:
        """Of x, X, z and Z."""
        x, X, z, Z = parts
        return cls(x, X, z, Z, owner=owner)


class WarmStarts:
    """States and adjoint states by the keys of samples, at most ``limit`` bytes of them, which checkpoints hold, too;
    samples beyond that start cold at every visit, as those without a key do. In a group each worker has those that it
    computed, and all know who has which."""

    def __init__(self, limit: int = _BYTES, group: Group | None = None) -> None:
        self._limit, self._bytes = limit, 0
        self._group = Group() if group is None else group
        self._states: dict[int, _Kept] = {}

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

    def bring(self, needed: Sequence[tuple[Sequence[Sample], int]]) -> None:
        """Move the states of samples to the workers that need them next; all workers ask for the same."""
        wanted = []
        for samples, target in needed:
            for sample in samples:
                state = self._known(sample)
                if state is not None and state.owner not in (None, target):
                    wanted.append((sample.key, state, target))
        for (key, state, target), found in zip(wanted, self._moved([(s, t) for _, s, t in wanted]), strict=True):
            if target == self._group.rank and key is not None:
                self._states[key] = _Kept.made(found, state.owner)

    def _moved(self, wanted: Sequence[tuple[_Kept, int]]) -> list[list[Tensor | None]]:
        """x, X, z and Z of states, moved to their targets."""
        if not wanted:
            return []
        parcels = []
        for state, target in wanted:
            assert state.owner is not None
            parcels.append(Parcel(state.owner, target, [v for v in _parts(state) if v is not None]))
        moved = [iter(tensors) for tensors in self._group.move(parcels)]
        return [[None if v is None else next(t) for v in _parts(s)] for (s, _), t in zip(wanted, moved, strict=True)]

    def keep(self, samples: Sequence[Sample], state: Start, owner: int = 0) -> None:
        """Remember states, and adjoint states of the sum over samples: a mean's carry 1/batch, which varies. owner: the
        worker that computed them; on the others they are hollow."""
        size = 2 * sum(v[0].numel() * v.element_size() for v in (state.x, state.z) if v is not None)
        for k, sample in enumerate(samples):
            if sample.key is None:
                continue
            if self._known(sample) is None:
                if sample.key in self._states or self._bytes + size > self._limit:
                    continue
                self._bytes += size
            self._states[sample.key] = _Kept.made(_one_of(state, k, len(samples)), owner)

    def _known(self, sample: Sample) -> _Kept | None:
        """The state of a sample; none of an image of another shape, where a data set draws them anew."""
        found = None if sample.key is None else self._states.get(sample.key)
        return found if found is not None and found.x.shape == sample.x_true.shape else None

    def snapshot(self) -> dict[int, Start]:
        """What is remembered now."""
        return dict(self._states)

    def restore(self, states: Mapping[int, Start]) -> None:
        """Remember what ``snapshot`` returned, and nothing else."""
        self._states = {key: s if isinstance(s, _Kept) else _Kept.made(_parts(s)) for key, s in states.items()}
        self._bytes = sum(_size(state) for state in states.values())

    def state_dict(self) -> dict[str, Any]:
        """Stacks of the states of each shape, with their keys, whole at the first worker of a group, which stores
        them."""
        elsewhere = {key: state for key, state in self._states.items() if state.owner not in (None, 0)}
        moved = self._moved([(state, 0) for state in elsewhere.values()])
        states = self._states | {key: _Kept.made(parts) for key, parts in zip(elsewhere, moved, strict=True)}
        if self._group.rank != 0:
            return {"warm": []}
        groups: dict[Any, list[int]] = {}
        for key, state in states.items():
            kind = tuple(None if v is None else (v.shape, v.dtype) for v in _parts(state))
            groups.setdefault(kind, []).append(key)
        return {"warm": [{"keys": keys, **_stacks([states[k] for k in keys])} for keys in groups.values()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        states: dict[int, Start] = {}
        for group in state.get("warm", ()):  # checkpoints of earlier versions have none
            for k, key in enumerate(group["keys"]):
                x, X, z, Z = (None if group[name] is None else group[name][k] for name in _NAMES)
                assert x is not None
                assert X is not None
                states[key] = Start(x, X, z, Z)
        self.restore(states)


def hollow_start(state: Start) -> Start:
    """Its shapes, without numbers."""
    x, X, z, Z = (None if v is None else hollow(v) for v in _parts(state))
    assert x is not None
    assert X is not None
    return Start(x, X, z, Z)


def _one_of(state: Start, k: int, count: int) -> Sequence[Tensor | None]:
    """The state of sample k, and its adjoint state in the sum over samples."""
    if state.x.is_meta:  # for which torch imports 800 modules to multiply
        return [None if v is None else v[k] for v in _parts(state)]
    return _parts(state.part(k, count))


def _parts(state: Start) -> tuple[Any, Any, Tensor | None, Tensor | None]:
    return state.x, state.X, state.z, state.Z


def _stacks(states: Sequence[Start]) -> dict[str, Tensor | None]:
    columns = zip(*(_parts(state) for state in states), strict=True)
    return {n: None if c[0] is None else torch.stack(c) for n, c in zip(_NAMES, columns, strict=True)}


def _size(state: Start) -> int:
    return sum(v.numel() * v.element_size() for v in _parts(state) if v is not None)
