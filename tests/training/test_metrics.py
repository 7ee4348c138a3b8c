"""What is logged: appended without being read again, and whole after a full disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import learnreg as lr
from learnreg.training.metrics import Metrics

resource = pytest.importorskip("resource")


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file grows beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 11, 25, 30])
def test_rows_that_a_full_disk_refused_are_written_later(tmp_path: Path, size: int) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl")
    metrics.append({"step": 1})
    with full_disk(12 + size):
        for step in (2, 3, 4):
            try:
                metrics.append({"step": step})
            except lr.CheckpointError as error:
                assert "free space" in str(error)  # noqa: PT017 (the first ones may fit)
    assert [row["step"] for row in metrics.rows()] == [1, 2, 3][: 1 + size // 12]
    assert metrics.count == 4
    metrics.append({"step": 5})
    assert [row["step"] for row in Metrics(metrics.path).rows()] == [1, 2, 3, 4, 5]


def test_rows_are_not_read_while_they_are_appended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl")
    metrics.append({"step": 1})
    content = metrics.path.read_bytes()
    metrics.path.write_bytes(b"?" * len(content))
    metrics.append({"step": 2})
    assert metrics.flush(lasting=True) == 2
    metrics.path.write_bytes(content + metrics.path.read_bytes()[len(content) :])
    assert [row["step"] for row in metrics.rows()] == [1, 2]


def test_what_others_cut_or_tore_is_written_over(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl")
    for step in (1, 2):
        metrics.append({"step": step})
    with metrics.path.open("ab") as file:
        file.write(b'{"st')
    metrics.append({"step": 3})
    metrics.path.write_bytes(metrics.path.read_bytes()[:12])
    metrics.append({"step": 4})
    assert [row["step"] for row in metrics.rows()] == [1, 4]


@pytest.mark.parametrize("content", [b'{"step": 1}\n', None])
def test_links_are_replaced(tmp_path: Path, content: bytes | None) -> None:
    target = tmp_path / "elsewhere"
    if content is not None:
        target.write_bytes(content)
    metrics = Metrics(tmp_path / "metrics.jsonl")
    metrics.path.symlink_to(target)
    metrics.append({"step": 2})
    assert not metrics.path.is_symlink()
    assert [row["step"] for row in metrics.rows()] == [1, 2][content is None :]
    assert (target.read_bytes() if target.exists() else None) == content
