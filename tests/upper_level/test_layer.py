"""The solution layer in the torch world: torch.func against loops, compiled models, copies, and what it keeps alive."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable

import pytest
import registry
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacrev, jvp, stack_module_state, vmap

import learnreg as lr
from learnreg.operators import Inpainting
from learnreg.upper_level.layer import SolutionLayer

CASES = ["denoising-learned-ridge", "inpainting"]


def layer_of(case: str, factor: float = 1.0) -> tuple[SolutionLayer, Tensor]:
    """A tight layer, its parameters times a factor, and two measurements."""
    problem = registry.build(case, "FieldsOfExperts")
    b = registry.measure(problem)[1]
    with torch.no_grad():
        for p in problem.parameters():
            p.mul_(factor)
    return lr.solution_layer(problem, tolerance=1e-6), b


def loss_of(layer: SolutionLayer) -> Callable[[Tensor], Tensor]:
    return lambda b: (layer(b) ** 3).sum()


def at_parameters(layer: SolutionLayer) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
    return lambda parameters, b: (functional_call(layer, parameters, (b,)) ** 3).sum()


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def by_autograd(layer: SolutionLayer, b: Tensor) -> list[Tensor]:
    """The gradients in b and in the parameters, by a plain backward pass."""
    point = b.clone().requires_grad_()
    return list(torch.autograd.grad(loss_of(layer)(point), (point, *layer.parameters())))


@pytest.mark.parametrize("case", CASES)
def test_vmap_joins_its_axis_to_the_batch(case: str) -> None:
    layer, b = layer_of(case)
    stack = torch.stack([b, 1.1 * b, b - 0.1])
    expected = torch.stack([layer(each) for each in stack]).detach()
    close(vmap(layer)(stack), expected)
    close(vmap(vmap(lambda one: layer(one[None])[0]))(stack), expected)
    close(vmap(layer, in_dims=2, out_dims=1)(stack.movedim(0, 2)), expected.movedim(0, 1))


@pytest.mark.parametrize("case", CASES)
def test_gradients_in_b(case: str) -> None:
    layer, b = layer_of(case)
    loss, stack = loss_of(layer), torch.stack([b, 0.9 * b])
    close(grad(loss)(b), by_autograd(layer, b)[0])
    close(vmap(grad(loss))(stack), torch.stack([by_autograd(layer, each)[0] for each in stack]))


def test_jacobians_in_b() -> None:
    layer, b = layer_of("denoising")
    part = lambda b: layer(b).flatten()[:3]  # noqa: E731
    expected = []
    for one in b[:, None]:
        point = one.clone().requires_grad_()
        expected.append(torch.stack([torch.autograd.grad(part(point)[k], point)[0] for k in range(3)]))
    close(jacrev(part)(b[:1]), expected[0])
    close(vmap(jacrev(part))(b[:, None]), torch.stack(expected))


@pytest.mark.parametrize("learned", [True, False])
def test_gradients_in_parameters_of_a_functional_call(learned: bool) -> None:
    layer, b = layer_of("denoising-learned-ridge")
    parameters = {n: p if learned else p.detach() for n, p in layer.named_parameters()}
    found = grad(at_parameters(layer))(parameters, b)
    for g, expected in zip(found.values(), by_autograd(layer, b)[1:], strict=True):
        close(g, expected)
    each = vmap(grad(at_parameters(layer)), (None, 0))(parameters, b[:, None])
    for k, name in enumerate(parameters, 1):
        close(each[name], torch.stack([by_autograd(layer, one[None])[k] for one in b]))


def test_ensembles_of_parameters() -> None:
    layers = [layer_of("denoising-learned-ridge", factor)[0] for factor in (1.0, 1.1, 0.8)]
    b = layer_of("denoising")[1]
    stacked, _ = stack_module_state(layers)
    solve = lambda parameters, b: functional_call(layers[0], parameters, (b,))  # noqa: E731
    together = vmap(solve, (0, None))(stacked, b)
    close(together, torch.stack([layer(b) for layer in layers]))
    expected = [by_autograd(layer, b) for layer in layers]
    (together**3).sum().backward()
    for k, p in enumerate(stacked.values(), 1):
        close(p.grad, torch.stack([row[k] for row in expected]))
    fixed = {n: p.detach() for n, p in stacked.items()}
    both = vmap(lambda t: vmap(lambda c: grad(at_parameters(layers[0]), 1)(t, c))(torch.stack([b, b])))(fixed)
    close(both, torch.stack([torch.stack([row[0], row[0]]) for row in expected]))


def test_the_gradient_is_that_of_central_differences() -> None:
    layer, b = layer_of("weights-and-blur")
    move, h = registry.randn(*b.shape, seed=8), 1e-3
    ends = [(lr.solve(layer.problem, b + s * h * move, 1e-9).x ** 3).sum() for s in (1, -1)]
    difference = (ends[0] - ends[1]) / (2 * h)
    torch.testing.assert_close((by_autograd(layer, b)[0] * move).sum(), difference, rtol=1e-3, atol=1e-5)


SECOND: dict[str, Callable[[SolutionLayer, Tensor], object]] = {
    "hessian": lambda layer, b: hessian(loss_of(layer))(b),
    "jvp": lambda layer, b: jvp(layer, (b,), (b,)),
    "grad of grad": lambda layer, b: grad(lambda c: grad(loss_of(layer))(c).sum())(b),
    "double backward": lambda layer, b: twice(layer, b),
}


def twice(layer: SolutionLayer, b: Tensor) -> tuple[Tensor, ...]:
    point = b.clone().requires_grad_()
    (first,) = torch.autograd.grad(loss_of(layer)(point), point, create_graph=True)
    return torch.autograd.grad(first.sum(), tuple(layer.parameters()))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", SECOND)
def test_there_is_one_derivative_in_reverse_mode_and_it_says_so(name: str) -> None:
    layer, b = layer_of("denoising")
    with pytest.raises(lr.AssumptionError, match="differentiated once, in reverse mode"):
        SECOND[name](layer, b)


def test_what_nobody_would_learn_is_refused() -> None:
    mask = registry.rand(*registry.SHAPE)
    regularizer = layer_of("denoising")[0].problem.regularizer
    layer = lr.solution_layer(lr.LowerLevelProblem(Inpainting(mask), regularizer, ridge=0.1))
    b = registry.rand(2, *registry.SHAPE)
    with pytest.raises(lr.ConfigError, match=r"make it an nn\.Parameter"):
        grad(lambda m: functional_call(layer, {"problem.operator.mask": m}, (b,)).sum())(mask)
    with pytest.raises(lr.ConfigError, match=r"Inpainting\(mask\): requires a gradient"):
        Inpainting(mask.clone().requires_grad_())


class Network(nn.Module):
    """A model that holds a layer, with a graph break in a context and in a loop."""

    def __init__(self, layer: SolutionLayer) -> None:
        super().__init__()
        self.before, self.layer = nn.Conv2d(1, 1, 3, padding=1).double(), layer

    def forward(self, b: Tensor) -> Tensor:
        with torch.no_grad():
            fixed = self.layer(b)
        for _ in range(2):
            b = self.layer(self.before(b))
        return b + fixed


@pytest.mark.slow(seconds=8)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("held", [False, True])
def test_a_compiled_model_computes_the_same(held: bool) -> None:
    layer, b = layer_of("denoising")
    model = Network(layer) if held else layer
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    for batch in (b, torch.cat([b, b])):
        points = [batch.clone().requires_grad_() for _ in range(2)]
        results = [m(point) for m, point in zip((model, compiled), points, strict=True)]
        torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)
        for result in results:
            result.square().sum().backward()
        torch.testing.assert_close(points[1].grad, points[0].grad, rtol=0, atol=0)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_gradients_that_overflow_above_are_not_hidden(bad: float) -> None:
    layer, b = layer_of("denoising")
    point = b.clone().requires_grad_()
    weight = torch.ones_like(b)
    weight[1, 0, 2, 3] = bad
    (layer(point) * weight).sum().backward()
    assert all(bool(p.grad.isnan().all()) for p in layer.parameters())
    assert bool(point.grad[1].isnan().all())
    alone = b[:1].clone().requires_grad_()
    layer(alone).sum().backward()
    close(point.grad[:1], alone.grad)


def test_factors_of_a_gradient_scaler_change_nothing() -> None:
    layer, b = layer_of("denoising")
    found = []
    for factor in (1.0, 2.0**16, 2.0**-20):
        layer.zero_grad()
        (factor * layer(b).square().sum()).backward()
        found.append(layer.problem.regularizer.filters.grad / factor)
    close(found[1], found[0])
    close(found[2], found[0])


def test_copies_and_graphs() -> None:
    layer, b = layer_of("denoising")
    x = layer(b.clone().requires_grad_())
    node = weakref.ref(x.grad_fn)
    assert layer.last_solution is not None
    assert not layer.last_solution.x.requires_grad
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(copied(b), x)
        assert copied.problem is not layer.problem
    del x
    gc.collect()
    assert node() is None


def test_refusals() -> None:
    layer, b = layer_of("denoising")
    for bad, kind in ((layer, "SolutionLayer"), (b, "Tensor"), (None, "NoneType")):
        with pytest.raises(lr.ConfigError, match=rf"solution_layer\(problem\): got {kind}"):
            lr.solution_layer(bad)  # type: ignore[arg-type]
    for method in ("implicit", lr.Implicit, 3):
        with pytest.raises(lr.ConfigError, match=r"method: got .* expected lr\.Implicit\(\)"):
            lr.solution_layer(layer.problem, method)  # type: ignore[arg-type]
    replica = copy.copy(layer)
    replica._is_replica = True  # as nn.DataParallel marks it
    with pytest.raises(lr.ConfigError, match="DistributedDataParallel"):
        replica(b)
    assert torch.equal(nn.DataParallel(layer)(b), layer(b))
    with torch.inference_mode():
        made_there = b.clone()
    assert torch.equal(layer(made_there), layer(b))
