"""The rows of associative recall, and that a small model learns from them."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the [export] extra: torch is not installed")

import gguf
import torch
from click.testing import CliRunner
from selm_export.modeling.configuration import SelmConfig
from selm_export.modeling.file import read_model
from selm_export.modeling.model import SelmForCausalLM
from selm_export.recall import lengths, main, recalled, rows, vocabulary

DATA = Path(__file__).parents[1] / "data"


def test_every_key_is_told_once_and_asked_once_with_its_value() -> None:
    ids, places, back = rows(50, 6, 20, torch.Generator().manual_seed(3))
    assert ids.shape == (50, 24) and places.tolist() == [13, 15, 17, 19, 21, 23]
    for row, distances in zip(ids.tolist(), back.tolist(), strict=True):
        told = dict(zip(row[:12:2], row[1:12:2], strict=True))
        asked = list(zip(row[12::2], row[13::2], strict=True))
        assert len(told) == 6 and sorted(told) == sorted(key for key, _ in asked)
        assert all(told[key] == value for key, value in asked)
        assert max(told) < 20 and all(20 <= value < 40 for value in told.values())
        for place, distance in zip(places.tolist(), distances, strict=True):
            question = place - 1
            assert row[question - distance - 1 : question - distance + 1] == row[question:][:2]
    assert [k for k, _ in asked] != list(told)  # in another order


def test_rows_grow_to_what_was_asked_for() -> None:
    assert lengths(32) == [4, 8, 16, 32] and lengths(2) == [2] and lengths(7) == [4, 7]


def test_every_word_is_a_token_of_one_character() -> None:
    tokenizer = vocabulary(24)
    assert tokenizer.encode("#O!").ids == [2, 46, 0]
    assert sorted(tokenizer.get_vocab().values()) == list(range(48 + 3))


def test_far_is_what_windows_on_windows_do_not_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that answers all questions within its reach, and no other."""
    config = SelmConfig(
        vocab_size=131, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, attention_kinds=["window"] * 2, window=8,
    )  # fmt: skip

    def some_right(model: object, asked: object) -> tuple[torch.Tensor, torch.Tensor]:
        back = asked.back  # type: ignore[attr-defined]
        truth = asked.ids[:, asked.places]  # type: ignore[attr-defined]
        wrong = (truth + (back > 16)).flatten()
        return torch.eye(131)[wrong].view(*truth.shape, 131), truth

    monkeypatch.setattr("selm_export.recall.answers", some_right)
    right = recalled(SelmForCausalLM(config), 32, 64, 100, seed=5)
    assert right.far == 0 and 0.02 < right.all < 0.06  # 36 of 1024 pairs of places: 3.5 %


def test_the_trained_file_recalls_through_its_features_alone() -> None:
    model = read_model(DATA / "recall-32.gguf")
    right = recalled(model, 32, 64, 100, seed=9)
    assert right.all > 0.98 and right.far is not None and right.far > 0.98
    with torch.no_grad():
        model.get_parameter("model.layers.1.self_attn.far_gain").fill_(-30)  # e^-30 of it
    blind = recalled(model, 32, 64, 100, seed=9)
    assert blind.far is not None and blind.far < 0.05


def run(options: str) -> str:
    result = CliRunner().invoke(main, options.split())
    assert result.exit_code == 0, result.output
    return result.output.strip().splitlines()[-1]


def test_a_row_that_fits_the_window_is_learnt(tmp_path: Path) -> None:
    """Two pairs of four words: far above chance (a quarter of the values) in a few seconds."""
    file = tmp_path / "m.gguf"
    last = run(
        "--pairs 2 --words 4 --kinds window --width 32 --steps 120 --batch 128 --rate 0.01"
        f" --save {tmp_path / 'm'} --write {file}"
    )
    assert last.startswith("window, window 8, 2 pairs: ")
    share = float(last.split(": ")[1].split("%")[0]) / 100
    assert share > 0.45
    for model in (SelmForCausalLM.from_pretrained(tmp_path / "m"), read_model(file)):
        assert recalled(model, 2, 4, 1000, seed=-1).all == pytest.approx(share, abs=1e-3)
    tokens = gguf.GGUFReader(file).get_field("tokenizer.ggml.tokens")
    assert tokens is not None and tokens.contents()[:8] == list("!\"#$%&'(")


def test_more_pairs_than_keys_are_refused() -> None:
    result = CliRunner().invoke(main, ["--pairs", "9", "--words", "8"])
    assert result.exit_code == 2 and "9 pairs need as many keys; --words is 8" in result.output
