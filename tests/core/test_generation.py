"""A reply as it is made: pieces of whole UTF-8, stop strings, ends, limits, cancel, deadline."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from support.gguf_files import CONFIGS, spm_vocabulary, write_model
from support.scripted import CONFIG, chain, write_scripted

from selm_edge import Model, _core

STOP, LENGTH, CONTEXT, CANCELLED, DEADLINE = 1, 2, 3, 4, 5
VOCABULARY = spm_vocabulary(CONFIG.vocab)
ID = {token: i for i, token in enumerate(VOCABULARY["tokens"])}
EOS = 2
BAD = "\N{REPLACEMENT CHARACTER}"
EMOJI = [ID[f"<0x{b:02X}>"] for b in "🦊".encode()]  # four bytes, four tokens


def greedy() -> _core.Sampling:
    sampling = _core.Sampling()
    sampling.temperature = 0.0
    return sampling


class Reply:
    """Everything a generation gave."""

    def __init__(self, session: _core.Session, prompt: list[int], **options: object) -> None:
        generation = _core.Generation(session, prompt, greedy(), **options)
        self.pieces, self.tokens, self.finish = [], [], 0
        while not self.finish:
            piece, token, self.finish = generation.next()
            self.pieces.append(piece)
            self.tokens.append(token)
        assert generation.next() == ("", -1, self.finish)  # an end stays the end
        self.text, self.stats = "".join(self.pieces), generation.stats
        generation.close()


def scripted(tmp_path: Path, tokens: list[int], **options: object) -> _core.Session:
    path = write_scripted(tmp_path / "m.gguf", chain(tokens), **options)
    return _core.Session(_core.Model(str(path)), context=64, threads=1)


def ids(*tokens: str) -> list[int]:
    return [ID[t] for t in tokens]


def test_a_reply_ends_at_the_end_token(tmp_path: Path) -> None:
    session = scripted(tmp_path, [*ids("▁Once", "▁the", "▁w", "in", "d", "."), EOS])
    reply = Reply(session, ids("▁Once"))
    assert reply.text == " the wind."
    assert reply.finish == STOP
    assert reply.stats.tokens == 5  # the end token not counted
    assert reply.stats.prompt_tokens == 1
    assert reply.stats.finish == STOP


def test_it_goes_on_after_the_end_token_if_asked(tmp_path: Path) -> None:
    session = scripted(tmp_path, [*ids("▁Once", "t"), EOS, *ids("h", "e")])
    reply = Reply(session, ids("▁Once"), ignore_end=True, max_tokens=4)
    assert (reply.text, reply.finish) == ("the", LENGTH)
    shown = Reply(session, ids("▁Once"), ignore_end=True, special=True, max_tokens=4)
    assert shown.text == "t</s>he"


@pytest.mark.parametrize("n", [1, 2, 5])
def test_max_tokens(n: int, tmp_path: Path) -> None:
    session = scripted(tmp_path, ids("▁Once", "a", "b", "c", "d"))
    reply = Reply(session, ids("▁Once"), max_tokens=n)
    assert (reply.text, reply.finish, reply.stats.tokens) == ("abcdd"[:n], LENGTH, n)


def test_a_full_context_ends_the_reply(tmp_path: Path) -> None:
    session = scripted(tmp_path, ids("▁Once", "a"))
    reply = Reply(session, ids("▁Once"))
    assert reply.finish == CONTEXT
    assert reply.text == "a" * 64  # the last one needs no place of its own
    assert session.position == 64


def test_a_prompt_without_room_is_refused(tmp_path: Path) -> None:
    session = scripted(tmp_path, ids("▁Once", "a"))
    with pytest.raises(_core.CoreError) as caught:
        Reply(session, [5] * 64)
    assert caught.value.args[0] == "context_full"
    with pytest.raises(_core.CoreError):
        Reply(session, [])
    with pytest.raises(_core.CoreError):
        Reply(session, [CONFIG.vocab])
    assert Reply(session, [5] * 62 + ids("▁Once"), max_tokens=1).text == "a"


# ---- Stop strings ------------------------------------------------------------------------------

WORDS = ids("▁Once", "▁the", "▁w", "in", "d", "▁s", "on", "g", ".", "!")  # " the wind song.!!!"


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        (["wind"], " the "),  # over three tokens, beginning inside one
        (["."], " the wind song"),
        ([" the"], ""),
        (["d s"], " the win"),
        (["nope", "song"], " the wind "),
        (["song", "wind"], " the "),  # the first to come, whatever their order
        (["win", "wind"], " the "),
        (["windows", "wind song"], " the "),
        ([""], " the wind song.!!!!"),  # an empty one stops nothing
        (["!!!"], " the wind song."),
    ],
)
def test_stop_strings_are_found_across_tokens(stop: list[str], text: str, tmp_path: Path) -> None:
    reply = Reply(scripted(tmp_path, WORDS), ids("▁Once"), stop=stop, max_tokens=12)
    assert reply.text == text
    assert reply.finish == (LENGTH if stop == [""] else STOP)


def test_text_that_might_be_a_stop_string_is_held_back_and_then_given(tmp_path: Path) -> None:
    reply = Reply(scripted(tmp_path, WORDS), ids("▁Once"), stop=["window"], max_tokens=9)
    assert reply.text == " the wind song.!"
    assert reply.pieces[:4] == [" the", " ", "", ""]  # "w", "win", "wind" may go on as "window"


def test_what_is_held_back_comes_out_at_the_end(tmp_path: Path) -> None:
    reply = Reply(scripted(tmp_path, WORDS), ids("▁Once"), stop=["wind song"], max_tokens=4)
    assert reply.text == " the wind"


# ---- UTF-8 -------------------------------------------------------------------------------------


def test_a_character_of_four_tokens_comes_whole(tmp_path: Path) -> None:
    session = scripted(tmp_path, [*ids("▁Once", "a"), *EMOJI, *ids("b"), EOS])
    reply = Reply(session, ids("▁Once"))
    assert reply.pieces == ["a", "", "", "", "🦊", "b", ""]


def test_half_a_character_at_the_end_is_replaced(tmp_path: Path) -> None:
    session = scripted(tmp_path, [*ids("▁Once", "a"), *EMOJI[:3], EOS])
    assert Reply(session, ids("▁Once")).text == f"a{BAD}"


def test_bytes_that_can_never_be_text_are_replaced_at_once(tmp_path: Path) -> None:
    session = scripted(tmp_path, [*ids("▁Once", "<0xFF>", "a", "<0xC3>", "b", "<0x80>"), EOS])
    reply = Reply(session, ids("▁Once"))
    assert reply.text == f"{BAD}a{BAD}b{BAD}"
    assert reply.pieces[0] == BAD


def test_a_stop_string_of_several_bytes(tmp_path: Path) -> None:
    session = scripted(tmp_path, [*ids("▁Once", "a"), *EMOJI, *ids("b"), EOS])
    reply = Reply(session, ids("▁Once"), stop=["🦊"])
    assert (reply.text, reply.finish) == ("a", STOP)


# ---- Biases and seeds --------------------------------------------------------------------------


def test_a_bias_bans_or_favours(tmp_path: Path) -> None:
    session = scripted(tmp_path, ids("▁Once", "a", "b"))
    favoured = Reply(session, ids("▁Once"), max_tokens=3, logit_bias={ID["w"]: 1e3})
    assert favoured.text == "www"
    banned = Reply(session, ids("▁Once"), max_tokens=1, logit_bias={ID["a"]: float("-inf")})
    assert banned.text != "a"
    outside = Reply(session, ids("▁Once"), max_tokens=1, logit_bias={10**6: 5.0, -1: 5.0})
    assert outside.text == "a"
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(_core.CoreError, match="bias"):
            Reply(session, ids("▁Once"), logit_bias={5: wrong})


def test_a_seed_gives_the_same_reply_again(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", CONFIGS["llama"])
    with Model.load(path, context=128, threads=1) as model:

        def reply(seed: int | None) -> str:
            return "".join(model.generate("the", max_tokens=40, temperature=1.5, seed=seed))

        assert reply(7) == reply(7)
        assert reply(7) != reply(8)
        assert len({reply(None) for _ in range(4)}) > 1


# ---- Prefix reuse --------------------------------------------------------------------------------


def test_a_prompt_that_begins_alike_is_not_read_again(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", CONFIGS["qwen3"])
    model = _core.Model(str(path))
    first = [9, 8, 7, 6, 5, 4, 3, 2, 1]

    def fresh(prompt: list[int]) -> list[int]:
        session = _core.Session(model, context=64, threads=1)
        return Reply(session, prompt, max_tokens=6, ignore_end=True).tokens

    session = _core.Session(model, context=64, threads=1)
    start = Reply(session, first, max_tokens=6, ignore_end=True)
    assert start.stats.cached_tokens == 0
    longer = first + start.tokens + [11, 12]
    again = Reply(session, longer, max_tokens=6, ignore_end=True)
    assert again.stats.cached_tokens >= len(first) + 5
    assert again.tokens == fresh(longer)
    same = Reply(session, longer, max_tokens=6, ignore_end=True)
    assert same.stats.cached_tokens == len(longer) - 1  # the last one's logits are needed
    assert same.tokens == again.tokens
    other = [9, 8, 1, 2, 3]
    forked = Reply(session, other, max_tokens=6, ignore_end=True)
    assert forked.stats.cached_tokens == 2
    assert forked.tokens == fresh(other)
    alone = Reply(session, other, max_tokens=6, ignore_end=True, reuse_prefix=False)
    assert alone.stats.cached_tokens == 0


# ---- Cancel and deadline -------------------------------------------------------------------------


@pytest.fixture
def slow(tmp_path: Path) -> _core.Session:
    """Many layers, on the slowest instruction set, so that there is something to interrupt."""
    path = write_scripted(tmp_path / "m.gguf", {5: 5}, layers=64)
    return _core.Session(_core.Model(str(path), isa="scalar"), context=256, threads=2)


def test_a_cancel_before_the_first_step(slow: _core.Session) -> None:
    generation = _core.Generation(slow, [5, 5, 5], greedy())
    generation.cancel()
    assert generation.next() == ("", -1, CANCELLED)
    assert slow.position == 0
    generation.close()
    assert len(Reply(slow, [5, 5], max_tokens=3).tokens) == 3  # one cancel stops one piece of work


def test_a_cancel_between_steps_keeps_the_text(slow: _core.Session) -> None:
    generation = _core.Generation(slow, [5], greedy(), special=True)
    pieces = [generation.next()[0] for _ in range(3)]
    generation.cancel()
    assert generation.next()[2] == CANCELLED
    assert len(pieces) == 3
    assert generation.stats.tokens == 3
    generation.close()


def test_a_cancel_from_another_thread_stops_a_prompt(slow: _core.Session) -> None:
    start = time.perf_counter()
    slow.eval([5] * 60, "last")
    whole = time.perf_counter() - start
    slow.truncate(0)
    timer = threading.Timer(whole / 10, slow.cancel)
    timer.start()
    start = time.perf_counter()
    with pytest.raises(_core.CoreError) as caught:
        slow.eval([5] * 60, "last")
    stopped = time.perf_counter() - start
    timer.join()
    assert caught.value.args[0] == "cancelled"
    assert slow.position == 0
    assert stopped < whole  # one layer of 64 is enough; the machine may be busy
    again = bytes(memoryview(slow.eval([5] * 3)))  # what was begun left no trace
    slow.truncate(0)
    assert bytes(memoryview(slow.eval([5] * 3))) == again


def test_a_deadline_ends_a_reply_with_its_text(slow: _core.Session) -> None:
    slow.set_deadline(1)
    time.sleep(0.005)
    generation = _core.Generation(slow, [5] * 50, greedy())
    assert generation.next()[2] == DEADLINE
    generation.close()
    assert slow.position == 0
    with pytest.raises(_core.CoreError) as caught:
        slow.eval([5])
    assert caught.value.args[0] == "deadline"
    slow.set_deadline(0)
    assert memoryview(slow.eval([5])).shape == (1, CONFIG.vocab)
