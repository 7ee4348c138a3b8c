"""Fixtures shared by all tests: seeds, generators and the optional folder of experiment data."""

from __future__ import annotations

import gc
import os
import random
import runpy
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # the controller of pytest-xdist runs no test and starts sooner without it
    import torch

ROOT = Path(__file__).resolve().parents[1]
ROTATING_SEED = int(os.environ.get("LEARNREG_SEED") or time.time_ns() // 1_000_000 % 2**31)

_SHARE = 0.4
"""Of the shares that grids of cases name: how much of the whole suite a run may take."""

_MANY = 4
"""Cases of a test from which on it is a grid."""

_SLOW_SECONDS = 2.0
"""Of a slow test that does not say more: ``slow(seconds=...)``."""

os.environ["LEARNREG_SEED"] = str(ROTATING_SEED)  # the workers of pytest-xdist inherit it
os.environ["LEARNREG_CACHE"] = ""  # tests build their matrices and leave the user's cache alone
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: more only slow the small problems here


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """One process for chosen files or tests, which end before other workers have started; else as many as there are
    cores."""
    return None if config.args_source is pytest.Config.ArgsSource.TESTPATHS else 0


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Iterator[object]:
    """What is collected stays until the end: Python's garbage collector need not go through it again and again."""
    gc.disable()
    found = yield
    gc.enable()
    gc.freeze()
    return found


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A few slow tests, drawn by the rotating seed, run with the others until they fill LEARNREG_SLOW_SECONDS; of grids
    of cases a sample drawn likewise runs with the whole suite, all of them when files are chosen or with -m slow."""
    left = float(os.environ.get("LEARNREG_SLOW_SECONDS") or 0.0)
    slow = [item for item in items if item.get_closest_marker("slow")]
    for item in random.Random(ROTATING_SEED).sample(slow, len(slow)):
        marker = item.get_closest_marker("slow")
        seconds = marker.kwargs.get("seconds", _SLOW_SECONDS) if marker else 0.0
        if seconds <= left:
            left -= seconds
            item.own_markers = [m for m in item.own_markers if m.name != "slow"]
    if config.args_source is pytest.Config.ArgsSource.TESTPATHS:
        grids: dict[str, list[pytest.Item]] = {}
        for item in items:
            grids.setdefault(item.nodeid.partition("[")[0], []).append(item)
        for name, cases in grids.items():
            marker = cases[0].get_closest_marker("sampled")
            for item in _not_drawn(name, cases, **marker.kwargs) if marker else _every_second(name, cases):
                item.add_marker(pytest.mark.slow)


def _every_second(test: str, cases: list[pytest.Item]) -> list[pytest.Item]:
    """Half of the cases of a test that has at least ``_MANY`` and says nothing of samples."""
    if len(cases) < _MANY:
        return []
    return random.Random(f"{ROTATING_SEED} {test}").sample(cases, len(cases) // 2)


def _not_drawn(test: str, cases: list[pytest.Item], share: float, by: tuple[str, ...]) -> list[pytest.Item]:
    """The cases of a test that are not in this run's sample. Cases that agree in the parameters ``by``, whose truth is
    shared, are together in it or not. Diagonals of the grid are drawn, its rows and columns in random order: each value
    of a parameter is there, unless all others have fewer than 1/share values. Shares are those of the marks times
    ``_SHARE``."""
    share, order = _SHARE * share, random.Random(f"{ROTATING_SEED} {test}")
    keys = [[str(item.callspec.params[name]) for name in by] for item in cases]  # type: ignore[attr-defined]
    places = []
    for values in zip(*keys, strict=True):
        shuffled = sorted(set(values))
        order.shuffle(shuffled)
        places.append({value: place for place, value in enumerate(shuffled)})
    left_out = []
    for item, key in zip(cases, keys, strict=True):
        diagonal = sum(place[value] for place, value in zip(places, key, strict=True))
        if diagonal * share % 1.0 >= share - 1e-9:
            left_out.append(item)
    return left_out


def pytest_report_header() -> str:
    return f"rotating seed: LEARNREG_SEED={ROTATING_SEED}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """With -q there is no header, so that a failure states the seed that repeats it."""
    if terminalreporter.stats.get("failed") or terminalreporter.stats.get("error"):
        terminalreporter.write_line(f"To repeat the random tests: LEARNREG_SEED={ROTATING_SEED}")


@pytest.fixture(autouse=True)
def _global_state() -> Iterator[None]:
    """Seeds torch's global generator; one thread, since more only slow the small problems here; fails a test that
    leaves another default dtype behind."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)
    dtype = torch.get_default_dtype()
    yield
    left_behind = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    assert left_behind == dtype, f"the test changed the default dtype to {left_behind}"


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For modules of small tensors, which are faster so."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def quick_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings that start from roughly tuned weights: tuning them well takes longer than what tests train."""
    from learnreg.training import start_tuning

    monkeypatch.setattr(start_tuning, "_WEIGHING_STEPS", 1)


@pytest.fixture(autouse=True)
def _no_reports(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs into folders without the report at their end, which takes longer than the training of tests; those that ask
    for ``reports`` have it."""
    if "reports" not in request.fixturenames:
        monkeypatch.setattr("learnreg.training.train.report_run", lambda *given: None)


@pytest.fixture
def reports() -> None:
    """Runs into folders with the report at their end."""


@pytest.fixture
def program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., str]]:
    """What a script prints, as a program of its own in an empty folder, but in this process: torch starts slowly."""
    import torch

    from learnreg.regularizers import REGULARIZERS

    kept, state, registered = dict(os.environ), torch.get_rng_state(), dict(REGULARIZERS)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def printed(script: Path, *arguments: str) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [str(script), *arguments])
        sys.path.insert(0, str(script.parent))
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            try:
                runpy.run_path(str(script), run_name="__main__")
            except SystemExit as end:
                if end.code:
                    pytest.fail(f"{script.name} exited with {end.code}")
        return capsys.readouterr().out

    yield printed
    os.environ.clear()
    os.environ.update(kept)
    torch.set_rng_state(state)
    REGULARIZERS.clear()
    REGULARIZERS.update(registered)


@pytest.fixture
def seed() -> int:
    """The fixed seed of ordinary tests."""
    return 0


@pytest.fixture
def generator(seed: int) -> torch.Generator:
    import torch

    return torch.Generator().manual_seed(seed)


@pytest.fixture
def rotating_seed(request: pytest.FixtureRequest) -> int:
    """Another seed in every run, for tests of bounds that must hold always; fixed by LEARNREG_SEED."""
    return zlib.crc32(f"{ROTATING_SEED}:{request.node.name}".encode())


@pytest.fixture
def rotating_generator(rotating_seed: int) -> torch.Generator:
    import torch

    return torch.Generator().manual_seed(rotating_seed)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of experiment data: LEARNREG_DATA, or ../shared/data beside the project. Tests skip without it."""
    folder = Path(os.environ.get("LEARNREG_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip("the folder of experiment data is absent (set LEARNREG_DATA)")
    return folder
