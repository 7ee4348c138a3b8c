"""Several workers that train as one: who does what, what is exchanged, how they start and end."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support.worker_group import different, learned_bits, lost, run_in_group, two_runs
from torch import Tensor

import learnreg as lr
from learnreg.convolutions.correlation import adopt_kernels, agree_on_kernels, chosen_kernels, correlate
from learnreg.errors import ConfigError, DataError, OperatorError, SolverError, WorkerError
from learnreg.training.clock import Clock, TimeUp
from learnreg.training.group import Group, Mapper, Parcel
from learnreg.training.interrupts import Interrupted, Interrupts
from learnreg.training.launch import Place, first_host, place_in
from learnreg.training.lifeline import Lifeline, Watch
from learnreg.training.messages import dumps, hollow, loads
from learnreg.training.samples import Sample
from learnreg.training.shared_folder import SharedFolder
from learnreg.training.warm_starts import WarmStarts, hollow_start
from learnreg.training.workers import pieces

CPU = torch.device("cpu")


class Together:
    """Groups of threads that stand for processes: what they exchange goes through messages."""

    def __init__(self, size: int) -> None:
        self.size, self.met, self.values = size, Barrier(size), [b""] * size

    def run(self, function: Callable[[Group], Any]) -> list[Any]:
        found: list[Any] = [None] * self.size

        def one(rank: int) -> None:
            found[rank] = function(_Threaded(self, rank))

        threads = [Thread(target=one, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found


class _Threaded(Group):
    def __init__(self, together: Together, rank: int) -> None:
        self.together, self.rank, self.size = together, rank, together.size  # type: ignore[misc]

    def gather(self, value: Any) -> list[Any]:
        self.together.values[self.rank] = dumps(value)
        self.together.met.wait(20)
        found = [loads(data, CPU) for data in self.together.values]
        self.together.met.wait(20)
        return found

    def first(self, function: Callable[[], Any]) -> Any:
        return self.gather(function() if self.rank == 0 else None)[0]

    def map(
        self,
        run: Mapper,
        function: Callable[[Any], Any],
        items: Sequence[Any],
        sent: Callable[[Any], Any],
        owners: Sequence[int] | None = None,
    ) -> list[Any]:
        raise NotImplementedError

    def move(self, parcels: Sequence[Parcel]) -> list[list[Tensor]]:
        everyone = self.gather([p.tensors if p.source == self.rank else None for p in parcels])
        return [everyone[p.source][k] if p.target == self.rank else p.tensors for k, p in enumerate(parcels)]


def test_a_batch_is_cut_and_shared_alike_by_any_number_of_workers() -> None:
    assert [list(piece) for piece in pieces(range(8), 3)] == [[0, 1, 2], [3, 4, 5], [6, 7]]
    for size in (1, 2, 3, 4, 7):
        group = Group()
        group.size = size  # type: ignore[misc]
        for count in (1, 2, 5, 12):
            owners = [group.owner(k, count) for k in range(count)]
            assert owners == sorted(owners)
            assert owners[0] == 0  # which audits the first chunk
            assert owners[-1] < size
            assert max(owners.count(k) for k in range(size)) <= -(-count // size)


@pytest.mark.parametrize(
    "error",
    [
        DataError("no images.", "a/b.png", "Pass another folder."),
        OperatorError("not linear", "linear"),
        SolverError("too rough", object()),
        ConfigError("differs:", ["seed: 0", "data: 5"]),
        Interrupted(signal.SIGTERM),
        KeyError("x"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_errors_reach_other_workers(error: BaseException) -> None:
    error.add_note("in update 3")
    found = loads(dumps(error), CPU)
    assert type(found) is type(error)
    assert found.__notes__ == ["in update 3"]
    for name in ("exit_code", "failed_property", "hint", "path", "number", "lines"):
        assert getattr(found, name, None) == getattr(error, name, None)
    if not isinstance(error, KeyError):
        assert str(found) == str(error)


def test_an_error_of_a_class_that_others_do_not_have_says_what_it_is() -> None:
    class OwnError(Exception):
        pass

    found = loads(dumps(OwnError("text")), CPU)
    assert isinstance(found, WorkerError)
    assert str(found) == "OwnError: text"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool])
def test_tensors_reach_other_workers_to_the_bit(dtype: torch.dtype, generator: torch.Generator) -> None:
    tensors = [(100 * torch.rand(shape, generator=generator)).to(dtype) for shape in ((2, 3), (), (0, 4))]
    tensors.append(tensors[0].T)
    for before, after in zip(tensors, loads(dumps(tensors), CPU), strict=True):
        assert torch.equal(before, after)
        assert before.dtype == after.dtype
        empty = loads(dumps(hollow(before)), CPU)
        assert (empty.shape, empty.dtype, empty.is_meta) == (before.shape, dtype, True)


def test_warm_starts_stay_where_they_are_computed_and_move_where_they_are_needed(generator: torch.Generator) -> None:
    """As in one process: two chunks are solved, then one of a sample of each, by the second worker."""
    samples = [Sample(torch.zeros(1, 3), torch.zeros(1, 3), key=key) for key in range(4)]
    states = lr.Start(*(torch.rand(4, 1, 3, generator=generator) for _ in range(4)))
    later = lr.Start(*(torch.rand(2, 1, 3, generator=generator) for _ in range(4)))
    middle = samples[1:3]

    def visit(group: Group) -> Any:
        def of(state: lr.Start, owner: int) -> lr.Start:
            return state if owner * (group.size - 1) == group.rank else hollow_start(state)

        warm = WarmStarts(group=group)
        for owner in (0, 1):
            two = slice(2 * owner, 2 * owner + 2)
            warm.keep(samples[two], of(states.part(two, 1.0), owner), owner * (group.size - 1))
        had = [key for key, state in warm.snapshot().items() if not state.x.is_meta]
        before = warm.snapshot()
        warm.bring([(middle, group.size - 1)])
        starts = warm.starts(middle, torch.zeros(2, 1, 3)) if group.rank == group.size - 1 else None
        warm.keep(middle, of(later, 1), group.size - 1)
        stored = warm.state_dict()["warm"]
        warm.restore(before)
        warm.bring([(samples, 0)])
        return had, starts, stored, warm.starts(samples, torch.zeros(4, 1, 3)) if group.rank == 0 else None

    ((_, wanted, stored, all_again),) = Together(1).run(visit)
    first, second = Together(2).run(visit)
    assert (first[0], second[0]) == ([0, 1], [2, 3])
    assert second[2] == []  # the first one stores all
    assert first[2][0]["keys"] == stored[0]["keys"]
    for name in ("x", "X", "z", "Z"):
        assert torch.equal(getattr(second[1], name), getattr(wanted, name))
        assert torch.equal(first[2][0][name], stored[0][name])
        assert torch.equal(getattr(first[3], name), getattr(all_again, name))


def test_workers_measure_a_kernel_once() -> None:
    before, asked = chosen_kernels(), []

    def agree(key: str, name: str) -> str:
        asked.append((key, name))
        return "conv2d"

    agree_on_kernels(agree)
    try:
        x, filters = torch.rand(1, 1, 23, 29), torch.rand(3, 5, 5)
        for _ in range(2):
            correlate(x, filters)
    finally:
        agree_on_kernels(None)
    ((key, _),) = asked
    assert key not in before
    assert chosen_kernels()[key] == "conv2d"
    adopt_kernels({key: "rows-of-windows"})
    assert chosen_kernels()[key] == "rows-of-windows"


def test_one_clock_and_one_signal_end_all_workers() -> None:
    clock = Clock(1e6)
    clock.check()
    clock.agree = lambda is_over: True
    with pytest.raises(TimeUp):
        clock.check()
    interrupts = Interrupts()
    with pytest.raises(Interrupted, match="SIGTERM"), interrupts.held(lambda number: max(number, signal.SIGTERM)):
        interrupts.check()
    interrupts.check()


def test_the_first_worker_has_the_folder(tmp_path: Path) -> None:
    def use(group: Group) -> Any:
        folder = SharedFolder(tmp_path / "run", False, group)
        with folder.held():
            folder.log({"step": 1})
            folder.save_checkpoint({"a": torch.ones(2) * (1 + group.rank)})
        again = SharedFolder(tmp_path / "run", True, group)
        state = again.load_checkpoint()
        assert state is not None
        return folder.rows(), state["a"].tolist(), again.resumed_from, folder.model_path

    first, second = Together(2).run(use)
    assert first == second
    assert first[:2] == ([{"step": 1}], [1.0, 1.0])


# ---- how they start ------------------------------------------------------------------------------------------------

SLURM = {"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "70011", "SLURM_JOB_NODELIST": "gpu[003-004,9],b"}
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "5", "SLURM_NTASKS": "4"}, None),  # of a batch script, without srun
        ({**SLURM, "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, None),
        ({**SLURM, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None),  # srun -n 1 within a larger job
        (SLURM, Place(3, 8, "gpu003", 30011, 1)),
        ({**SLURM, "SLURM_CPUS_PER_TASK": "6"}, Place(3, 8, "gpu003", 30011, 6)),
        ({**SLURM, "OMP_NUM_THREADS": "2"}, Place(3, 8, "gpu003", 30011, None)),
        ({**SLURM, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "4444"}, Place(3, 8, "127.0.0.1", 4444, 1)),
        (TORCHRUN, Place(1, 2, "127.0.0.1", 29500)),
        ({**SLURM, **TORCHRUN}, Place(1, 2, "127.0.0.1", 29500)),  # torchrun within a SLURM job
    ],
)
def test_launchers_say_who_a_worker_is(environment: dict[str, str], place: Place | None) -> None:
    assert place_in(environment) == place


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"SLURM_NTASKS": "many"}, "SLURM_NTASKS='many'"),
        ({"SLURM_PROCID": "8"}, "worker 8 of 8"),
        ({"SLURM_JOB_NODELIST": ""}, "MASTER_ADDR"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT"),
    ],
)
def test_launchers_that_say_nonsense_are_refused(change: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        place_in({**SLURM, **change})


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("node7", "node7"),
        ("node7,node9", "node7"),
        ("gpu[003-010,12],login1", "gpu003"),
        ("a[1-2]b[03,05]-ib,c", "a1b03-ib"),
        ("127.0.0.1", "127.0.0.1"),
    ],
)
def test_the_first_of_a_list_of_nodes(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


# ---- how they end --------------------------------------------------------------------------------------------------


def test_a_worker_without_signs_of_life_is_named() -> None:
    stores = dist.HashStore()  # type: ignore[attr-defined]
    lines = [Lifeline(stores, rank, 3, patience=1.0) for rank in range(3)]
    try:
        watch = Watch(lines[0])
        assert watch.look(0.1) is None
        lines[1].stop()
        until = time.monotonic() + 30
        cause = None
        while cause is None and time.monotonic() < until:
            time.sleep(0.05)
            cause = watch.look(0.05)
        assert cause is not None
        assert "worker 1 hangs" in cause
        assert lines[0].hangs == 1
        lines[0].tell(cause)
        assert lines[2].tell("something else") == cause  # the first cause is everybody's
    finally:
        for line in lines:
            line.stop()


def test_an_error_of_all_workers_is_told_from_one_of_a_single_worker() -> None:
    stores = dist.HashStore()  # type: ignore[attr-defined]
    lines = [Lifeline(stores, rank, 2) for rank in range(2)]
    found: list[bool] = []
    try:
        threads = [Thread(target=lambda line=line: found.append(line.is_shared(5))) for line in lines]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [True, True]
        lines[1].failure = "known"
        assert not lines[1].is_shared(6)
    finally:
        for line in lines:
            line.stop()


@pytest.mark.parametrize("variable", ["LEARNREG_PATIENCE", "LEARNREG_TIMEOUT"])
def test_nonsense_in_the_environment_is_named(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "soon")
    with pytest.raises(ConfigError, match=f"{variable}=soon"):
        Lifeline(dist.HashStore(), 0, 2)  # type: ignore[attr-defined]


# ---- processes -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="gloo needs the name of the loopback interface")
def test_two_workers_make_the_bits_of_one_and_raise_the_same_error(tmp_path: Path) -> None:
    errors = run_in_group(2, two_runs, tmp_path / "run")
    (resumed,) = run_in_group(1, learned_bits, "foe", tmp_path / "run", {"updates": 4, "resume": True})
    (whole,) = run_in_group(1, learned_bits, "foe", None, {"updates": 4})
    assert [e.code for e in (*errors, resumed, whole)] == [0] * 4
    assert resumed.value == whole.value
    assert errors[0].value == errors[1].value
    kind, text, note = errors[0].value
    assert (kind, text[:5], note[:22]) == ("OSError", "image", "It happened in update ")


ADAPTIVE = {"optimizer": "adaptive", "samples": 12}


@pytest.mark.slow(seconds=60)
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("foe", {"tune": True}),
        ("icnn", {}),
        ("ct", {"tune": True}),
        ("ct", ADAPTIVE),
        ("foe", {**ADAPTIVE, "sampling": "minibatch", "audit_every": 2}),
        ("icnn", {"optimizer": "lbfgs", "samples": 11}),
        ("foe", {"batch_size": 5, "chunk_size": 1, "method": lr.Unrolled(8)}),
    ],
)
def test_any_number_of_workers_makes_the_same_bits(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    (whole,) = run_in_group(1, learned_bits, kind, None, {"updates": 4, **options})
    for size in (2, 4):
        found = run_in_group(size, learned_bits, kind, None, {"updates": 4, **options})
        assert [e.value == whole.value for e in found] == [True] * size
    run_in_group(4, learned_bits, kind, tmp_path, {"updates": 2, **options})
    for size, updates in ((2, 3), (1, 4)):
        found = run_in_group(size, learned_bits, kind, tmp_path, {"updates": updates, "resume": True, **options})
    assert found[0].value == whole.value


@pytest.mark.slow(seconds=60)
@pytest.mark.parametrize(
    ("number", "what"), [(signal.SIGKILL, "worker 1 ended"), (signal.SIGSTOP, "worker 1 hangs")], ids=["kill", "stop"]
)
def test_all_end_when_a_worker_is_lost(number: int, what: str, tmp_path: Path) -> None:
    found = run_in_group(3, lost, tmp_path, number, limit=90.0)
    assert [e.code for e in found] == [1, -signal.SIGKILL, 1]
    said = (tmp_path / "said-0").read_text(encoding="utf-8")
    assert what in said
    assert "holds the model; --resume goes on from the checkpoint before" in said
    assert what in (tmp_path / "said-2").read_text(encoding="utf-8")
    (resumed,) = run_in_group(1, learned_bits, "foe", tmp_path, {"updates": 6, "resume": True})
    (whole,) = run_in_group(1, learned_bits, "foe", None, {"updates": 6})
    assert resumed.value == whole.value


@pytest.mark.slow(seconds=40)
def test_workers_that_differ_are_told_in_what() -> None:
    for what, name in (
        ("data", "options or data"),
        ("seed", "seed is 0 at worker 0 and 1 at worker 1"),
        ("ridge", "ridge"),
    ):
        for ended in run_in_group(2, different, what):
            assert name in ended.value
    same, other = run_in_group(2, different, "parameters")  # those of the first one count
    assert same.value == other.value
    assert float(same.value) > 0
