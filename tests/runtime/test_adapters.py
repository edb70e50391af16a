"""Adapters from Python and the command line: as merged weights, without opening anything anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from support.adapters import ALPHA, RANK, pairs, write_adapter
from support.gguf_files import CONFIGS, random_weights, to_gguf, write_model

from selm_edge import Model, SelmError

CONFIG = CONFIGS["llama"]
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 30}
PROMPT = list(range(5, 40))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model, an adapter, and the model with that (by a scale of 0.5) in its weights."""
    folder = tmp_path_factory.mktemp("a")
    weights = random_weights(CONFIG, seed=5)
    names = to_gguf(CONFIG, weights)
    low = pairs(names, 1, ["attn_q", "ffn_down", "ffn_up"])
    raw = {}
    for name, (a, b) in low.items():
        whole = names[name] + 0.5 * ALPHA / RANK * (b.astype(np.float64) @ a)
        as_bytes = np.ascontiguousarray(whole.astype(np.float32)).view(np.uint8)
        raw[name] = (as_bytes, gguf.GGMLQuantizationType.F32)
    other = {name: (a[:, :-1].copy(), b) for name, (a, b) in low.items()}
    return {
        "model": write_model(folder / "m.gguf", CONFIG, weights),
        "merged": write_model(folder / "merged.gguf", CONFIG, weights, raw=raw),
        "adapter": write_adapter(folder / "a=1.gguf", CONFIG.arch, low),
        "misfit": write_adapter(folder / "misfit.gguf", CONFIG.arch, other),
    }


def reply(model: Model, **options: Any) -> str:
    return model.generate(PROMPT, **{**GREEDY, **options}).finish().text


def test_a_reply_is_as_of_merged_weights(files: dict[str, Path]) -> None:
    with Model.load(files["merged"], threads=1) as merged:
        expected = reply(merged)
    with Model.load(files["model"], threads=1) as model:
        plain = reply(model)
        model.set_adapters({files["adapter"]: 0.5})
        assert reply(model) == expected != plain
        # What an own session read before is read again.
        with model.session() as own:
            assert reply(model, session=own) == expected
            model.set_adapters({})
            assert reply(model, session=own) == plain
            model.set_adapters({files["adapter"]: 0.5})
            assert reply(model, session=own) == expected
            with own.fork() as fork:
                assert reply(model, session=fork) == expected
        model.set_adapters({})
        assert reply(model) == plain


def test_what_does_not_fit_is_refused_and_changes_nothing(files: dict[str, Path]) -> None:
    with Model.load(files["model"], threads=1) as model:
        model.set_adapters({files["adapter"]: 1.0})
        before = reply(model)
        with pytest.raises(SelmError, match=r"misfit.gguf: .*attn_q.weight(.|\n)*this very model"):
            model.set_adapters({files["misfit"]: 1.0})
        with pytest.raises(SelmError, match=r"nowhere.gguf"):
            model.set_adapters({"nowhere.gguf": 1.0})
        with pytest.raises(ValueError, match="the scale of"):
            model.set_adapters({files["adapter"]: float("nan")})
        assert reply(model) == before


def test_the_command_line_adds_them(cli: Any, files: dict[str, Path]) -> None:
    def ask(model: str, *adapters: str) -> str:
        chosen = [part for adapter in adapters for part in ("--adapter", adapter)]
        done = cli("ask", "-m", str(files[model]), "--raw", "--temperature", "0", "--max-tokens",
                   "12", *chosen, "Once upon a time")  # fmt: skip
        assert done.returncode == 0, done.stderr
        out: str = done.stdout
        return out

    own = str(files["adapter"])  # its name holds a "="
    assert ask("model", f"{own}=0.5") == ask("merged") != ask("model") != ask("model", own)
    wrong = cli("ask", "-m", str(files["model"]), "--adapter", str(files["misfit"]), "Hello")
    assert wrong.returncode == 1 and "attn_q.weight" in wrong.stderr
