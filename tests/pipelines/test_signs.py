"""Signs of life come between steps, as often as said, and change nothing of what is returned."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from pipelines import signs


def _work(steps: int) -> Generator[None, None, str]:
    for _ in range(steps):
        yield
    return "done"


@pytest.mark.parametrize(("every_s", "told"), [(5.0, 0), (0.0, 7)])
def test_signs_between_steps(monkeypatch: pytest.MonkeyPatch, every_s: float, told: int) -> None:
    monkeypatch.setattr(signs, "_EVERY_S", every_s)
    found = []

    def caller() -> Generator[str, None, None]:
        found.append((yield from signs.given(_work(7))))

    assert list(caller()) == [signs.ALIVE] * told
    assert found == ["done"]
    assert signs.kept_back(_work(7)) == "done"
