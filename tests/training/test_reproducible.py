"""Runs of the same seed are the same to the bit: on slow and fast data, and interrupted anywhere and resumed."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import learnreg as lr
from learnreg.operators import Identity
from learnreg.regularizers import FieldsOfExperts, Regularizer, RidgeRegularizer
from learnreg.training.clock import Clock, TimeUp
from learnreg.training.run_folder import RunFolder
from learnreg.training.samples import Sample
from learnreg.training.schedule import AuditCount, is_milestone, is_validated, step_factor
from learnreg.training.warm_starts import WarmStarts

pytestmark = pytest.mark.usefixtures("quick_starts")

SHAPE = (1, 10, 10)


STARTED: dict[str, Any] = {"batch_size": 4, "updates": 1}


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that refuses to go on otherwise, and so stays as it is."""
    folder = tmp_path_factory.mktemp("started")
    lr.train(problem(), images(), out=folder, **STARTED)
    return folder


def images(count: int = 6, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 1, 5, 5, generator=generator).repeat_interleave(2, -1).repeat_interleave(2, -2)
    return x + 0.1 * torch.randn(x.shape, generator=generator), x


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(list(zip(*images(), strict=True)))


class Slow:
    def __init__(self, seconds: float) -> None:
        self.seconds, self.pairs = seconds, list(zip(*images(), strict=True))

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Any:
        time.sleep(self.seconds)
        return self.pairs[index]


class Augmented(Slow):
    """Other samples at every access, drawn from torch's default generator."""

    def __getitem__(self, index: int) -> Any:
        b, x = self.pairs[index]
        shift = int(torch.randint(10, ()))
        return b.roll(shift, -1), x.roll(shift, -1)


REGULARIZERS: dict[str, Any] = {
    "foe": lambda: FieldsOfExperts(2, 3, lr.PseudoHuber(0.05, 0.2)),
    "ridge": lambda: RidgeRegularizer((2, 3), 3, knots=7, noise_conditioned=True),
}
DATA: dict[str, Any] = {
    "pairs": lambda: images(),
    "levels": lambda: (*images(), torch.tensor([0.1, 0.2, 0.1, 0.05, 0.1, 0.2])),
    "stream": Stream,
    "augmented": lambda: Augmented(0.0),
    "loader": lambda: DataLoader(
        TensorDataset(*images()), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(4)
    ),
    "sizes": lambda: [*zip(*images(), strict=True), (torch.ones(1, 12, 9), torch.ones(1, 12, 9))],
}


def problem(regularizer: str = "foe") -> lr.LowerLevelProblem:
    torch.manual_seed(0)
    made: Regularizer = REGULARIZERS[regularizer]()
    return lr.LowerLevelProblem(Identity(SHAPE), made, ridge=0.1)


def learned(p: lr.LowerLevelProblem) -> dict[str, Tensor]:
    return {name: q.detach().clone() for name, q in p.learnable().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def logged(folder: Path) -> list[dict[str, Any]]:
    """The rows, without the time they took."""
    return [{**row, "seconds": None} for row in RunFolder(folder, resume=True).rows()]


class Killed(BaseException):
    pass


class Killer:
    """Raises in the update after ``last``, or, of methods that ask for no loss then, after it."""

    def __init__(self, last: int | None) -> None:
        self.last, self.done = last, 0

    def loss(self, x_true: Tensor) -> lr.UpperLoss:
        if self.last is not None and self.done >= self.last:
            raise Killed
        return lr.SquaredError(x_true)

    def count(self, row: Any) -> None:
        self.done = row["step"]
        if self.last is not None and self.done > self.last:
            raise Killed


def interrupted(
    out: Path, data: str, at: list[int], options: dict[str, Any], regularizer: str = "foe"
) -> lr.LowerLevelProblem:
    """A run that is killed after these updates, in the middle of the next one, and resumed each time."""
    p = problem(regularizer)
    for k, last in enumerate([*at, None]):
        p = problem(regularizer)  # another process

        killer = Killer(last)
        try:
            lr.train(p, DATA[data](), killer.loss, out, resume=k > 0, on_update=killer.count, **options)
        except Killed:
            continue
        assert last is None, "it was killed"
    return p


OPTIMIZERS: list[dict[str, Any]] = [
    {"optimizer": "adam", "batch_size": 4},
    {"optimizer": "adam", "batch_size": 5, "method": lr.Unrolled(10)},
    {"optimizer": "lbfgs", "batch_size": 4},
    {"optimizer": "adaptive", "batch_size": 4, "audit_every": 2},
    {"optimizer": "adaptive", "batch_size": 4, "sampling": "minibatch"},
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: "-".join(map(str, o.values())))
def test_a_resumed_run_is_the_one_that_was_not_interrupted(optimizer: dict[str, Any], tmp_path: Path) -> None:
    options = {**optimizer, "samples": 6, "updates": 5}
    whole = problem()
    lr.train(whole, DATA["pairs"](), out=tmp_path / "whole", **options)
    parts = interrupted(tmp_path / "parts", "pairs", [1, 3], options)
    assert same(learned(whole), learned(parts))
    assert logged(tmp_path / "whole") == logged(tmp_path / "parts")
    max((tmp_path / "parts" / "checkpoint").iterdir()).unlink()  # as if it was killed before the last one
    again = problem()
    lr.train(again, DATA["pairs"](), out=tmp_path / "parts", resume=True, **options)
    assert same(learned(whole), learned(again))
    assert logged(tmp_path / "whole") == logged(tmp_path / "parts")


@pytest.mark.parametrize("data", ["levels", "stream", "augmented", "loader", "sizes"])
@pytest.mark.sampled(share=0.5, by=("data",))
def test_so_it_is_for_all_kinds_of_data(data: str, tmp_path: Path) -> None:
    options = {"updates": 4}
    regularizer = "ridge" if data == "levels" else "foe"
    whole = problem(regularizer)
    lr.train(whole, DATA[data](), out=tmp_path / "whole", **options)
    parts = interrupted(tmp_path / "parts", data, [2], options, regularizer)
    assert same(learned(whole), learned(parts))


def test_states_and_latent_variables_come_back_from_a_checkpoint(tmp_path: Path, generator: torch.Generator) -> None:
    def states(shape: tuple[int, ...], latent: bool) -> lr.Start:
        x, X, z, Z = (torch.rand(2, *shape, generator=generator) for _ in range(4))
        return lr.Start(x, X, z, Z) if latent else lr.Start(x, X)

    warm = WarmStarts()
    for keys, shape, latent in (((3, 1), (1, 4, 5), False), ((0, 7), (1, 4, 5), True), ((2, 5), (1, 6, 4), True)):
        samples = [Sample(torch.zeros(shape), torch.zeros(shape), key=key) for key in keys]
        warm.keep(samples, states(shape, latent))
    folder = RunFolder(tmp_path)
    folder.save_checkpoint(warm.state_dict())
    again = WarmStarts()
    again.load_state_dict(folder.load_checkpoint() or {})
    for key, state in warm.snapshot().items():
        found = again.snapshot()[key]
        for name in ("x", "X", "z", "Z"):
            before, after = getattr(state, name), getattr(found, name)
            assert (before is None and after is None) or torch.equal(before, after)


@pytest.mark.parametrize("optimizer", OPTIMIZERS[:1] + OPTIMIZERS[2:], ids=lambda o: o["optimizer"])
def test_slow_data_give_the_same_numbers(optimizer: dict[str, Any]) -> None:
    found = []
    for seconds in (0.0, 0.01):
        p = problem()
        lr.train(p, Slow(seconds), updates=4, samples=6, **optimizer)
        found.append(learned(p))
    assert same(*found)


class EndingClock(Clock):
    """The time ends at the n-th look at it."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.looks = looks

    def check(self) -> None:
        self.looks -= 1
        if self.looks < 0:
            raise TimeUp


def test_the_end_of_the_time_undoes_the_update_it_falls_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resumed with more time, L-BFGS goes on as if the time had not ended within a line search."""
    options: dict[str, Any] = {"updates": 3, "optimizer": "lbfgs", "samples": 6}
    whole, clock = problem(), EndingClock(1000)
    with monkeypatch.context() as patch:
        patch.setattr("learnreg.training.session.Clock", lambda seconds: clock)
        lr.train(whole, DATA["pairs"](), **options)
        clock = EndingClock(999 - clock.looks)  # not the last look
        assert lr.train(problem(), DATA["pairs"](), out=tmp_path, **options).updates < 3
    parts = problem()
    lr.train(parts, DATA["pairs"](), out=tmp_path, resume=True, **options)
    assert same(learned(whole), learned(parts))


def test_a_bounded_run_can_be_extended(tmp_path: Path) -> None:
    p = problem()
    assert lr.train(p, DATA["pairs"](), out=tmp_path, updates=2).updates == 2
    result = lr.train(p, DATA["pairs"](), out=tmp_path, updates=5, minutes=3.0, resume=True)
    assert [row["step"] for row in result.rows] == [1, 2, 3, 4, 5]
    assert "start_factor" in result.rows[0]
    assert all("start_factor" not in row for row in result.rows[1:])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed: 0 in the run, 1 now"),
        ({"optimizer": "lbfgs"}, "optimizer: 'adam' in the run, 'lbfgs' now"),
        ({"optimizer": "adaptive"}, "optimizer: "),
        ({"tolerance": 0.5}, "tolerance: 0.1 in the run, 0.5 now"),
        ({"audit_every": 5}, "audit_every: 10 in the run, 5 now"),
        ({"sampling": "fixed"}, "sampling: 'growing' in the run, 'fixed' now"),
        ({"step_size": 1e-3}, "step_size"),
        ({"batch_size": 3}, "batch_size"),
        ({"samples": 5}, "samples: 64 in the run, 5 now"),
        ({"method": lr.Piggyback()}, "method"),
        ({"tune": False}, "tune_start"),
        ({"data": images(5)}, "data: '6 items' in the run, '5 items' now"),
        ({"data": images(6, seed=2)}, "other training samples"),
        ({"data": DataLoader(TensorDataset(*images()), batch_size=4)}, "data: "),
        ({"regularizer": "ridge"}, "regularizer: 'FieldsOfExperts' in the run, 'RidgeRegularizer' now"),
        ({"ridge": 0.2}, "ridge: 0.1 in the run, 0.2 now"),
    ],
)
def test_a_run_goes_on_with_its_own_data_and_options(change: dict[str, Any], named: str, started: Path) -> None:
    data = change.pop("data", images())
    p = problem(change.pop("regularizer", "foe"))
    p.ridge = change.pop("ridge", 0.1)
    with pytest.raises(lr.ConfigError, match=named):
        lr.train(p, data, out=started, resume=True, **{**STARTED, **change})


def test_step_sizes_follow_the_updates() -> None:
    assert step_factor(0, 1) == 1.0
    assert [step_factor(k, 100) for k in (0, 50)] == pytest.approx([0.05, 0.5])
    assert 0 < step_factor(99, 100) < 1e-2
    without = [step_factor(k, None) for k in range(1000)]
    assert all(a < b for a, b in pairwise(without[:20]))
    assert all(a > b for a, b in pairwise(without[20:]))
    assert without[-1] > 0.1


def test_milestones_are_never_more_than_a_quarter_or_a_hundred_updates_apart() -> None:
    found = [k for k in range(1, 3000) if is_milestone(k)]
    assert found[:9] == [1, 2, 3, 4, 5, 6, 7, 8, 10]
    assert all(b - a <= min(max(1, a / 4), 100) for a, b in pairwise(found))


def test_validations_are_milestones_of_which_there_are_few() -> None:
    found = [k for k in range(1, 3000) if is_validated(k)]
    assert found[:7] == [1, 2, 4, 8, 18, 41, 97]
    assert all(is_milestone(k) for k in found)
    assert all(b - a <= 160 for a, b in pairwise(found))


def test_the_end_of_an_annealed_run_is_measured() -> None:
    """Where its step sizes have fallen to, milestone or not; that of a steady run may be the start of a longer one."""
    b, x = images()
    assert not is_milestone(9)
    for schedule, measured in (("annealed", True), ("steady", False)):
        result = lr.train(problem(), (b, x), updates=9, schedule=schedule, validation=(b[:1], x[:1]), tune=False)
        assert ("validation_psnr" in result.rows[-1]) == measured


def test_audits_come_by_count() -> None:
    count = AuditCount(10)
    assert [k for k in range(35) if count.next()] == [0, 10, 20, 30]
    again = AuditCount(10)
    again.load_state_dict(count.state_dict())
    assert [k for k in range(35, 55) if again.next()] == [40, 50]
    again.load_state_dict({"audit_work": 5})  # of earlier versions
    assert again.next()


def test_the_former_name_of_updates_still_works() -> None:
    with pytest.warns(DeprecationWarning, match="updates"):
        assert lr.train(problem(), images(), max_updates=2).updates == 2
    with pytest.raises(lr.ConfigError, match="updates alone"), pytest.warns(DeprecationWarning, match="updates"):
        lr.train(problem(), images(), updates=1, max_updates=2)


def test_no_update_at_all_is_said() -> None:
    with pytest.warns(UserWarning, match="before the first update"):
        assert lr.train(problem(), images(), minutes=1e-9).updates == 0
