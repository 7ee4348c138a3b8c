"""What ``learnreg.train`` takes for data: pairs in all forms are the same samples, and everything else is refused with
advice."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import learnreg as lr
from learnreg.linear.operator import LinearOperator
from learnreg.operators import Blur, CartesianMRI, Identity
from learnreg.regularizers import FieldsOfExperts, RidgeRegularizer, TotalVariation
from learnreg.training.samples import Reader, Sample
from learnreg.training.sources import source_of
from learnreg.training.workers import Workers

GENERATOR = torch.Generator().manual_seed(5)
TRUTHS = torch.rand(6, 1, 8, 9, generator=GENERATOR)
NOISY = TRUTHS + 0.1 * torch.randn(TRUTHS.shape, generator=GENERATOR)
LEVELS = torch.tensor([0.05, 0.1, 0.05, 0.2, 0.1, 0.05])
PAIRS = list(zip(NOISY, TRUTHS, strict=True))
TRIPLES = list(zip(NOISY, TRUTHS, LEVELS, strict=True))
LARGER = [(t + 0.1, t) for t in torch.rand(2, 1, 10, 8, generator=GENERATOR)]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(PAIRS)


class Plain:
    """Neither a torch data set nor a list."""

    def __len__(self) -> int:
        return len(PAIRS)

    def __getitem__(self, index: int) -> Any:
        return PAIRS[index]


def read(data: Any, operator: LinearOperator | None = None, batch_size: int | None = None, batches: int = 4) -> Any:
    """The first minibatches."""
    workers = Workers(2)
    try:
        source = source_of(data, Reader(operator or Identity((1, 8, 9))), workers, batch_size, seed=3)
        return [source.next_batch() for _ in range(batches)]
    finally:
        workers.close()


def contents(samples: list[Sample]) -> list[int]:
    """Which of the pairs these are, measurement and ground truth in their places."""
    found = []
    for s in samples:
        (match,) = [i for i, (b, x) in enumerate(PAIRS) if torch.equal(s.b, b) and torch.equal(s.x_true, x)]
        found.append(match)
    return found


def problem(shape: tuple[int, ...] = (1, 8, 9), conditioned: bool = False) -> lr.LowerLevelProblem:
    torch.manual_seed(0)
    regularizer = (
        RidgeRegularizer((2, 3), 3, knots=7, noise_conditioned=True)
        if conditioned
        else FieldsOfExperts(2, 3, lr.PseudoHuber(0.05, 0.2))
    )
    return lr.LowerLevelProblem(Identity(shape), regularizer)


MAP_STYLE: dict[str, Any] = {
    "list of pairs": PAIRS,
    "tuple of pairs": tuple(PAIRS),
    "list of lists": [list(pair) for pair in PAIRS],
    "NumPy pairs": [(b.numpy(), x.numpy()) for b, x in PAIRS],
    "big-endian NumPy pairs": [(b.numpy().astype(">f4"), x.numpy().astype(">f4")) for b, x in PAIRS],
    "two stacks": (NOISY, TRUTHS),
    "a list of two stacks": [NOISY, TRUTHS],
    "two NumPy stacks": (NOISY.numpy(), TRUTHS.numpy()),
    "TensorDataset": TensorDataset(NOISY, TRUTHS),
    "Subset": Subset(TensorDataset(NOISY, TRUTHS), range(6)),
    "ConcatDataset": ConcatDataset([TensorDataset(NOISY[:2], TRUTHS[:2]), TensorDataset(NOISY[2:], TRUTHS[2:])]),
    "a class": Plain(),
}


@pytest.mark.parametrize("form", MAP_STYLE)
def test_every_form_of_pairs_gives_the_same_batches(form: str) -> None:
    batches = [contents(batch) for batch in read(MAP_STYLE[form], batch_size=4, batches=3)]
    assert sorted(batches[0] + batches[1][:2]) == list(range(6))
    assert batches == [contents(batch) for batch in read(PAIRS, batch_size=4, batches=3)]


LOADERS: dict[str, tuple[Callable[[], DataLoader[Any]], list[int]]] = {
    "in order": (lambda: DataLoader(PAIRS, batch_size=4), [4, 2]),
    "dropping the last": (lambda: DataLoader(PAIRS, batch_size=4, drop_last=True), [4]),
    "a stream": (lambda: DataLoader(Stream(), batch_size=4), [4, 2]),
    "without batches": (lambda: DataLoader(PAIRS, batch_size=None), [1] * 6),
    "stacks": (lambda: DataLoader([(NOISY[:3], TRUTHS[:3]), (NOISY[3:], TRUTHS[3:])], batch_size=None), [3, 3]),
    "not stacked": (lambda: DataLoader(PAIRS, batch_size=3, collate_fn=lambda items: items), [3, 3]),
    "a batch sampler": (lambda: DataLoader(PAIRS, batch_sampler=[[5, 0], [1, 2, 3]]), [2, 3]),
}  # fmt: skip


@pytest.mark.parametrize("form", LOADERS)
def test_batches_of_a_loader_are_taken_as_they_are(form: str) -> None:
    make, sizes = LOADERS[form]
    batches = [contents(batch) for batch in read(make(), batches=2 * len(sizes))]
    assert [len(batch) for batch in batches] == 2 * sizes
    drawn = [i for batch in batches[: len(sizes)] for i in batch]
    assert drawn == ([5, 0, 1, 2, 3] if form == "a batch sampler" else list(range(sum(sizes))))


def test_a_loader_shuffles_by_its_own_random_numbers() -> None:
    expected = [
        i
        for epoch_batches in [DataLoader(range(6), batch_size=4, shuffle=True, generator=torch.manual_seed(8))]
        for _ in range(2)
        for batch in epoch_batches
        for i in batch.tolist()
    ]
    loader = DataLoader(PAIRS, batch_size=4, shuffle=True, generator=torch.manual_seed(8))
    assert [i for batch in read(loader) for i in contents(batch)] == expected


def test_streams_begin_anew() -> None:
    assert [contents(batch) for batch in read(Stream(), batch_size=4)] == [[0, 1, 2, 3], [4, 5]] * 2


def test_the_batch_size_of_a_loader_cannot_be_another() -> None:
    with pytest.raises(lr.ConfigError, match="gives batches of 4"):
        lr.train(problem(), DataLoader(PAIRS, batch_size=4), batch_size=3, updates=1)


@pytest.mark.parametrize("stacks", [(NOISY, TRUTHS), (NOISY.numpy(), TRUTHS.numpy())])
def test_two_stacks_are_measurements_and_truths(stacks: Any) -> None:
    """The first loss is that of the pairs, not of one measurement against another."""
    found = [lr.train(problem(), data, updates=1, batch_size=6, tune=False) for data in (stacks, PAIRS)]
    assert found[0].rows[0]["loss"] == found[1].rows[0]["loss"]
    x = lr.solve(problem(), NOISY, 1e-5).x
    assert found[0].rows[0]["loss"] == pytest.approx(float(lr.SquaredError(TRUTHS).value(x)), rel=5e-2)


@pytest.mark.parametrize("operator", ["identity", "blur"])
def test_images_of_several_sizes_are_batched_by_size(operator: str) -> None:
    """The gradient is the mean over all of them, each with the operator of its size."""
    kernel = torch.nn.Parameter(torch.tensor([[0.1, 0.8, 0.1]]))
    shape = (1, 8, 9)
    forward = Identity(shape) if operator == "identity" else Blur(kernel, shape, "reflect")
    regularizer = FieldsOfExperts(2, 3, lr.PseudoHuber(0.05, 0.2))
    seen: list[int] = []

    def loss(x_true: Tensor) -> lr.UpperLoss:
        seen.append(len(x_true))
        return lr.SquaredError(x_true)

    p = lr.LowerLevelProblem(forward, regularizer, ridge=0.1)
    before = {name: q.detach().clone() for name, q in p.learnable().items()}
    result = lr.train(p, PAIRS + LARGER, loss, updates=1, batch_size=8, tune=False, tolerance=1e-3, step_size=1e-9)
    assert sum(seen[1:9]) >= 8
    for name, q in p.learnable().items():
        assert torch.allclose(q, before[name], atol=1e-6)
    total = 0.0
    for b, x_true in PAIRS + LARGER:
        alone = lr.LowerLevelProblem(forward.on(tuple(x_true.shape)), regularizer, ridge=0.1)
        total += float(lr.SquaredError(x_true[None]).value(lr.solve(alone, b[None], 1e-5).x)) / 8
    assert result.rows[0]["loss"] == pytest.approx(total, rel=2e-2)


@pytest.mark.parametrize("data", [TRIPLES, (NOISY, TRUTHS, LEVELS), TensorDataset(NOISY, TRUTHS, LEVELS),
                                  [(b.numpy(), x.numpy(), float(s)) for b, x, s in TRIPLES]])  # fmt: skip
def test_noise_levels_of_samples_are_used(data: Any) -> None:
    result = lr.train(problem(conditioned=True), data, updates=1, batch_size=6, tune=False)
    total = 0.0
    for b, x_true, sigma in TRIPLES:
        alone = lr.LowerLevelProblem(
            Identity((1, 8, 9)), problem(conditioned=True).regularizer, noise_level=float(sigma)
        )
        total += float(lr.SquaredError(x_true[None]).value(lr.solve(alone, b[None], 1e-5).x)) / 6
    assert result.rows[0]["loss"] == pytest.approx(total, rel=2e-2)


@pytest.mark.parametrize(("weighting", "power"), [("none", 0), ("inverse-sigma", 1), ("inverse-variance", 2)])
@pytest.mark.parametrize("optimizer", ["adam", "adaptive"])
def test_losses_are_weighted_by_the_noise_levels_of_their_samples(weighting: Any, power: int, optimizer: Any) -> None:
    options = {"updates": 1, "batch_size": 6, "tune": False, "optimizer": optimizer, "sampling": "minibatch"}
    p = problem(conditioned=True)
    apart, alone = 0.0, {}
    for sigma in (0.05, 0.1, 0.2):
        triples = [t for t in TRIPLES if float(t[2]) == pytest.approx(sigma)]
        found = lr.train(problem(conditioned=True), triples, **options)
        alone[sigma] = found.rows[0]["loss"]
        apart += len(triples) / 6 * alone[sigma] / sigma**power
    found = lr.train(p, TRIPLES, **options, noise_weighting=weighting, validation=TRIPLES)
    assert found.rows[0]["loss"] == pytest.approx(apart, rel=1e-2)
    assert found.rows[0]["validation_loss"] == pytest.approx(apart, rel=0.3)  # one update later


def test_weights_of_noise_levels_need_noise_levels() -> None:
    with pytest.raises(lr.ConfigError, match="noise_weighting"):
        lr.train(problem(), PAIRS, updates=1, noise_weighting="inverse-sigma")


class Levels:
    """Items of three groups."""

    def __init__(self, groups: Any) -> None:
        self.groups = groups

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Any:
        return TRIPLES[index]

    def batch_groups(self) -> Any:
        return self.groups


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("groups", [[[0, 2, 5], [1, 4], [3]], [range(0, 6, 2), range(1, 6, 2)], [range(6), []]])
def test_batches_are_of_one_group_and_each_pass_has_every_item_once(size: int, groups: Any) -> None:
    count = sum(-(-len(group) // size) for group in groups)
    batches = [contents(batch) for batch in read(Levels(groups), batch_size=size, batches=2 * count)]
    assert all(any(set(batch) <= set(group) for group in groups) for batch in batches)
    for half in (batches[:count], batches[count:]):
        assert sorted(index for batch in half for index in batch) == list(range(6))
    assert batches == [contents(batch) for batch in read(Levels(groups), batch_size=size, batches=2 * count)]


def test_groups_survive_a_checkpoint_and_a_share_held_out(tmp_path: Path) -> None:
    groups = [[0, 2, 5], [1, 4], [3]]
    options = {"batch_size": 2, "tune": False, "noise_weighting": "inverse-sigma", "validation": 0.3}

    def learned(**more: Any) -> list[Tensor]:
        p = problem(conditioned=True)
        lr.train(p, Levels(groups), **options, **more)
        return [q.detach() for q in p.regularizer.parameters()]

    whole = learned(updates=4)
    learned(updates=1, out=tmp_path)
    resumed = learned(updates=4, out=tmp_path, resume=True)
    assert all(torch.equal(p, q) for p, q in zip(whole, resumed, strict=True))


@pytest.mark.parametrize("groups", [[[0, 1, 2]], [range(6), [0]], [range(7)]])
def test_groups_without_all_items_are_refused(groups: Any) -> None:
    with pytest.raises(lr.DataError, match="batch_groups"):
        read(Levels(groups))


class Keyed(Dataset[Any]):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        return {"b": NOISY[index], "x": TRUTHS[index]}


class Endless(Dataset[Any]):
    def __getitem__(self, index: int) -> Any:
        return PAIRS[index]


REFUSED: dict[str, tuple[Any, str]] = {
    "one stack": (NOISY, "one array of shape"),
    "one NumPy stack": (NOISY.numpy(), "one array of shape"),
    "a mapping": ({"b": NOISY, "x": TRUTHS}, "a dict, expected"),
    "a path": ("images", "DenoisingPatches"),
    "a generator": ((pair for pair in PAIRS), "only once.*list"),
    "zip": (zip(NOISY, TRUTHS, strict=True), "only once"),
    "nothing": (None, "cannot be read"),
    "a number": (3, "cannot be read"),
    "without a length": (Endless(), "without __len__"),
    "two lists of two": (([NOISY[0], NOISY[1]], [TRUTHS[0], TRUTHS[1]]), "tuple of 2 lists.*zip"),
    "two lists": ((list(NOISY), list(TRUTHS)), "tuple of 2 lists"),
    "one pair": ((NOISY[0], TRUTHS[0]), r"one pair.*\[\(b, x_true\)\]"),
    "stacks of different lengths": ((NOISY, TRUTHS[:4]), "6, 4 items"),
    "levels of another number": ((NOISY, TRUTHS, LEVELS[:2]), "6, 6, 2 items"),
    "no items": ([], "empty"),
    "no entries": ((NOISY[:0], TRUTHS[:0]), "stacks"),
    "an empty stream": (DataLoader(PAIRS, batch_size=9, drop_last=True), "drop_last"),
    "items that are dicts": (Keyed(), "keys 'b', 'x'"),
    "batches that are dicts": (DataLoader(Keyed(), batch_size=2), "keys 'b', 'x'"),
    "items that are images": (list(NOISY), "one array.*pairs"),
    "items that are texts": (["a", "b"], "a str, expected pairs"),
    "four entries": ([(NOISY[0], TRUTHS[0], 0.1, 0)], "4 entries"),
    "a mask as third entry": ([(NOISY[0], TRUTHS[0], TRUTHS[0] > 0)], "third entry"),
    "a negative level": ([(NOISY[0], TRUTHS[0], -0.1)], "noise level is -0.1"),
    "levels for some": ([*PAIRS[:2], *TRIPLES[:2]], "in every item, or in none"),
    "bytes": ([((255 * t).byte(), (255 * t).byte()) for t in TRUTHS], r"uint8.*b / 255"),
    "NumPy bytes": ((np.zeros((2, 1, 8, 9), np.uint8),) * 2, r"uint8.*255"),
    "complex": ([(b + 0j, x + 0j) for b, x in PAIRS], "two channels"),
    "objects": ([(np.array([None]), TRUTHS[0])], "object"),
    "no channel axis": ([(b[0], x[0]) for b, x in PAIRS], r"b\[None\]"),
    "a batch axis": ([(b[None], x[None]) for b, x in PAIRS], "Leave out the batch axis"),
    "channels last": ([(b.permute(1, 2, 0), x.permute(1, 2, 0)) for b, x in PAIRS], "Channels come first"),
    "colour": ([(b.repeat(3, 1, 1), x.repeat(3, 1, 1)) for b, x in PAIRS], "3 channels"),
    "NaN": ([(NOISY[0] * np.nan, TRUTHS[0])], "NaN"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_data_is_refused_with_advice(what: str) -> None:
    data, message = REFUSED[what]
    with pytest.raises(lr.DataError, match=message):
        lr.train(problem(conditioned=True), data, updates=1, tune=False)


class Halves(LinearOperator):
    """The sum of the upper and the lower half: of one shape alone."""

    def __init__(self) -> None:
        super().__init__((1, 8, 9), (1, 4, 9))

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :4] + x[:, :, 4:]

    def adjoint(self, y: Tensor) -> Tensor:
        return torch.cat([y, y], 2)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ((TRUTHS[0], TRUTHS[0][:, :4]), "The order is"),
        ((torch.zeros(1, 5, 8), torch.zeros(1, 10, 8)), r"Crop or resize the images to \(1, 8, 9\)"),
        ((TRUTHS[0], TRUTHS[0]), "Halves maps"),
    ],
)
def test_measurements_have_to_fit_the_operator(item: Any, message: str) -> None:
    with pytest.raises(lr.DataError, match=message):
        read([item], Halves())


@pytest.mark.parametrize(("noise_level", "conditioned"), [(0.1, True), (None, False), (LEVELS, True)])
def test_noise_levels_that_are_not_used_are_refused(noise_level: Any, conditioned: bool) -> None:
    p = problem(conditioned=conditioned)
    p = lr.LowerLevelProblem(p.operator, p.regularizer, noise_level=noise_level)
    with pytest.raises(lr.ConfigError, match=r"noise level|noise_level"):
        lr.train(p, TRIPLES, updates=1)


@pytest.mark.parametrize("loss", [torch.nn.functional.l1_loss, lr.SquaredError(TRUTHS), lambda x_true: 1.0])
def test_a_loss_is_made_of_ground_truths(loss: Any) -> None:
    with pytest.raises(lr.ConfigError, match="UpperLoss"):
        lr.train(problem(), PAIRS, loss, updates=1)


@pytest.mark.parametrize("scale", [(255.0, 255.0), (255.0, 1.0)])
def test_grey_levels_up_to_255_are_noticed(scale: tuple[float, float]) -> None:
    pairs = [(scale[0] * b, scale[1] * x) for b, x in PAIRS]
    with pytest.warns(UserWarning, match="divide"):
        lr.train(problem(), pairs, updates=1, batch_size=2, tune=False)


def test_k_space_is_as_large_as_it_is() -> None:
    """It has the shape of the images, and their sum among its numbers."""
    x = 0.5 + 0.5 * torch.rand(2, 2, 32, 32)
    A = CartesianMRI(torch.ones(32, 32))
    problem = lr.LowerLevelProblem(A, FieldsOfExperts(2, 3, channels=2, coupling="complex"))
    b = A(x)
    assert float(b.abs().max()) > 16.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lr.train(problem, (b, x), updates=1, batch_size=2, tune=False)


def test_images_that_teach_nothing() -> None:
    """Flat ones: every solve is done where it begins, and its residual is nothing but rounding."""
    x = torch.full((2, 1, 8, 8), 0.5)
    problem = lr.LowerLevelProblem(Identity((1, 8, 8)), TotalVariation(0.1), ridge=0.01)
    result = lr.train(problem, (x, x), tune=False, updates=1)
    assert result.rows[0]["loss"] > 0
