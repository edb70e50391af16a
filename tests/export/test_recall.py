"""The rows of associative recall, and that a small model learns from them."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="needs the [export] extra: torch is not installed")

import torch
from click.testing import CliRunner
from selm_export.recall import main, rows


def test_every_key_is_told_once_and_asked_once_with_its_value() -> None:
    ids, places = rows(50, 6, 20, torch.Generator().manual_seed(3))
    assert ids.shape == (50, 24) and places.tolist() == [13, 15, 17, 19, 21, 23]
    for row in ids.tolist():
        told = dict(zip(row[:12:2], row[1:12:2], strict=True))
        asked = list(zip(row[12::2], row[13::2], strict=True))
        assert len(told) == 6 and sorted(told) == sorted(key for key, _ in asked)
        assert all(told[key] == value for key, value in asked)
        assert max(told) < 20 and all(20 <= value < 40 for value in told.values())
    assert [k for k, _ in asked] != list(told)  # in another order


def test_a_row_that_fits_the_window_is_learnt() -> None:
    """Two pairs of four words: far above chance (a quarter of the values) in a few seconds."""
    options = "--pairs 2 --words 4 --kinds window --window 8 --width 32 --steps 250 --rate 0.01"
    result = CliRunner().invoke(main, options.split())
    assert result.exit_code == 0, result.output
    last = result.output.strip().splitlines()[-1]
    assert last.startswith("window, window 8, 2 pairs: ")
    assert float(last.split(": ")[1].split()[0]) > 45
