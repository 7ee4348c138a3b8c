"""What all tests of commands share."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports that show one image: drawing four takes longer than the training of a test."""
    from learnreg.report import figures

    monkeypatch.setattr(figures, "_MAX_IMAGES", 1)
