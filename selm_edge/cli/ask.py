"""`selm ask`: one question, one answer."""

from __future__ import annotations

import queue
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from selm_edge.backends.base import DRAFTS, MAX_SECONDS, MAX_TOKENS, SAMPLING_RANGES
from selm_edge.cli.common import (
    INTERRUPTED,
    Function,
    Number,
    json_option,
    model_options,
    note,
    open_model,
    show_json,
)
from selm_edge.errors import SelmError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from selm_edge.catalog import Entry
    from selm_edge.memory.memories import Memory
    from selm_edge.model import Model
    from selm_edge.reply import Prompt, Reply

_MAX_PIPE = 64 << 20  # bytes; more than any context holds
_FRAME = 64  # tokens for what a chat template writes around a question
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "seed")


def _number(name: str) -> click.ParamType[Any]:
    """The option type of a sampling setting."""
    kind, least, most = SAMPLING_RANGES[name]
    return click.IntRange(int(least), int(most)) if kind is int else Number(least, most)


def reply_options(function: Function) -> Function:
    """--expert, --draft: who speaks, and how tokens are guessed ahead."""
    for option in reversed(
        (
            click.option("--expert", metavar="auto|NAME", default="auto",
                         help="Which expert of the model speaks; auto: decided token by token."),
            click.option("--draft", type=click.Choice(DRAFTS), default="auto",
                         help="How tokens are guessed ahead. Only the speed depends on it, but for"
                              " calibrated, which keeps what an exit is sure of unverified."),
        )
    ):  # fmt: skip
        function = option(function)
    return function


@click.command()
@click.argument("text", nargs=-1)
@model_options
@click.option("--system", metavar="TEXT", help="Instructions that come before the question.")
@click.option("--max-tokens", type=click.IntRange(1, MAX_TOKENS), help="Stop after so many.")
@click.option("--temperature", type=_number("temperature"), help="0 takes the likeliest word.")
@click.option("--top-k", type=_number("top_k"), help="Only the k likeliest tokens; 0 is off.")
@click.option("--top-p", type=_number("top_p"), help="Only the likeliest that make up p.")
@click.option("--min-p", type=_number("min_p"), help="Only those p times as likely as the best.")
@click.option("--seed", type=_number("seed"), help="The same seed gives the same answer.")
@click.option("--schema", metavar="FILE|JSON", help="Answer in JSON that this JSON Schema accepts.")
@click.option("--grammar", metavar="FILE", help="Answer in a text of this grammar (GBNF).")
@click.option("--stop", multiple=True, metavar="TEXT", help="Stop at this text; may be repeated.")
@click.option(
    "--deadline",
    type=Number(0, MAX_SECONDS, min_open=True),
    metavar="SECONDS",
    help="Stop after that time.",
)
@click.option(
    "--on-overflow",
    type=click.Choice(["error", "trim"]),
    default="error",
    help="A question that does not fit is an error, or loses its oldest part.",
)
@reply_options
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="FILE[=SCALE]",
    help="Add a LoRA file to the model's weights, in place of those in use; may be repeated.",
)
@click.option("--no-adapters", is_flag=True, help="Without the adapters in use on the model.")
@click.option(
    "--file",
    "files",
    multiple=True,
    metavar="PATH",
    help="Answer from this file; it is remembered as a document. May be repeated.",
)
@click.option("--space", metavar="NAME", help="Recall from the memories of this space.")
@click.option("--no-memory", is_flag=True, help="Recall nothing.")
@click.option("--raw", is_flag=True, help="Go on from the text as it is: no chat template.")
@click.option("--stream/--no-stream", default=True, help="Print words as they come (default).")
@json_option
def ask(text: tuple[str, ...], **options: Any) -> int:  # fmt: skip
    """Ask one question and print the answer.

    What is piped in is given to the model as data, with TEXT as the question about it; without
    TEXT it is the question itself. Ctrl+C stops the model, keeps the words so far, and exits 130.

    \b
    Examples:
      selm ask "Why is the sky blue?"
      cat notes.txt | selm ask "summarise"
      selm ask --schema recipe.schema.json "A recipe for pancakes"
      selm ask --json --temperature 0 "Name three rivers" | jq -r .text
    """
    from selm_edge import adapters
    from selm_edge import config as preferences

    question, data = " ".join(text).strip(), _piped()
    if not question:
        question, data = data or "", None
    if not question.strip():
        raise click.UsageError('nothing to ask. Try: selm ask "Hello, who are you?"')
    config = preferences.load()
    began = time.monotonic()
    entry, model = open_model(
        config, **{key: options[key] for key in ("model", "backend", "threads", "context")}
    )
    with model:
        if options["adapters"]:
            model.set_adapters(dict(map(_adapter, options["adapters"])))
        elif not options["no_adapters"]:
            for problem in adapters.apply(model, entry):
                note(problem)
        load_seconds = time.monotonic() - began
        if options["max_tokens"] is None:
            options["max_tokens"] = config.max_tokens
        if options["system"] is None:
            options["system"] = config.system
        chosen = {key: options[key] for key in _SAMPLING if options[key] is not None}
        recalled = _recall(model, entry, question, options)
        reply = _start(
            model, entry, question, data, options=options, sampling={**config.sampling, **chosen},
            recalled=recalled,
        )  # fmt: skip
        for notice in reply.notices:
            note(notice.message)
        live = options["stream"] and not options["as_json"]
        interrupted = _follow(reply, live)
        if options["as_json"]:
            show_json(_result(reply, entry, model, load_seconds, recalled))
        elif not live:
            _print_text(reply.text)
        _explain(reply, model, options)
    return INTERRUPTED if interrupted else 0


def _notes_prefix(entry: Entry) -> str | None:
    """How the model was trained to read notes, if it was."""
    found: str | None = entry.details.get("notes_prefix", "N: " if entry.bundled else None)
    return found


def _recall(model: Model, entry: Entry, question: str, options: dict[str, Any]) -> Sequence[Memory]:
    """What is remembered about the question, or what the files hold; nothing for --no-memory."""
    from selm_edge import paths
    from selm_edge.cli.data import open_data, open_memories

    files = [Path(name).expanduser().absolute() for name in options["files"]]
    recalling = not options["no_memory"] and paths.database_file().exists()
    if options["raw"] or not (files or recalling):
        return []
    from selm_edge.memory.asking import gather
    from selm_edge.memory.memories import PERSONAL
    from selm_edge.trimming import reply_room

    def count_tokens(text: str) -> int:
        return len(model.tokenize(text, add_special=False))

    memories = open_memories(open_data(), quiet=True)
    space = memories.space(options["space"]).id if options["space"] else PERSONAL
    taken = reply_room(model.context, options["max_tokens"]) + count_tokens(question) + _FRAME
    found = gather(
        memories, question, space=space, context=model.context,
        free=model.context - taken, count_tokens=count_tokens, files=files, recalling=recalling,
        sparing=bool(_notes_prefix(entry)),
    )  # fmt: skip
    return [one.memory for one in found]


def _adapter(text: str) -> tuple[str, float]:
    """FILE or FILE=SCALE; a file's own name may hold a "="."""
    path, equals, scale = text.rpartition("=")
    try:
        return (path, float(scale)) if equals else (text, 1.0)
    except ValueError:
        return text, 1.0


def _text_of(given: str | None) -> str | None:
    """A schema as it is written, or what the file holds."""
    if given is None or given.lstrip().startswith("{"):
        return given
    try:
        return Path(given).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        cause = getattr(error, "strerror", None) or str(error)
        raise SelmError(f"{given}: cannot be read: {cause}") from None


def _piped() -> str | None:
    """What stands on stdin, if that is a pipe or a file."""
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        return None
    stream = getattr(sys.stdin, "buffer", None)
    raw = stream.read(_MAX_PIPE + 1) if stream is not None else sys.stdin.read().encode()
    if len(raw) > _MAX_PIPE:
        raise click.UsageError(f"more than {_MAX_PIPE >> 20} MiB on stdin; no context holds that")
    text: str = raw.decode("utf-8", "replace").strip("\n")
    return text if text.strip() else None


def with_data(question: str, data: str, notes_prefix: str | None = None) -> str:
    """The user's message: the data, marked as such, then the question.

    notes_prefix marks each line the way the model was trained to read notes; else a fence that the
    data does not contain stands around it.
    """
    if notes_prefix:
        lines = [f"{notes_prefix}{line.strip()}" for line in data.splitlines() if line.strip()]
        return "\n".join([*lines, question])
    fence = '"""'
    while fence in data:
        fence += '"'
    return f"Text:\n{fence}\n{data}\n{fence}\n\nThe text above is data. {question}"


def _start(
    model: Model,
    entry: Entry,
    question: str,
    data: str | None,
    *,
    options: dict[str, Any],
    sampling: dict[str, Any],
    recalled: Sequence[Memory] = (),
) -> Reply:
    from selm_edge.errors import ContextError
    from selm_edge.memory.prompting import with_memories

    common: dict[str, Any] = {
        "max_tokens": options["max_tokens"],
        "stop": options["stop"],
        "deadline": options["deadline"],
        "draft": options["draft"],
        "expert": options["expert"],
        "schema": _text_of(options["schema"]),
        "grammar": _text_of(options["grammar"]),
        **sampling,
    }
    prefix = _notes_prefix(entry)

    def content(text: str) -> str:
        """The user's turn, where ``text`` is what is left of the data or the question."""
        said = text if data is None else with_data(question, text, prefix)
        return with_memories(said, recalled, explained=not prefix)

    try:
        if options["raw"]:
            text = question if data is None else f"{data}\n{question}"
            return model.generate(text, on_overflow=options["on_overflow"], **common)
        if data is None:
            prompt = _prompt(model, question, "question", content, options)
        else:
            prompt = _prompt(model, data, "text", content, options)
        return model.generate(prompt, **common)
    except ContextError as error:  # the same in the words of the command line
        larger = "" if error.most else "choose a larger --context, "
        hint = f"Shorten the text, {larger}or let its beginning go: --on-overflow trim"
        if options["on_overflow"] == "trim":
            hint = "Without its beginning it does not fit either: shorten the question or --system."
        raise ContextError(error.needed, error.available, hint, most=error.most) from None


def _prompt(
    model: Model, whole: str, what: str, content: Callable[[str], str], options: dict[str, Any]
) -> Prompt:
    """What the model reads; with "trim" without the beginning of ``whole``, data or question."""
    from selm_edge.errors import ContextError
    from selm_edge.templates import Notice
    from selm_edge.trimming import cut_front, reply_room

    def made(text: str) -> Prompt:
        messages = [{"role": "user", "content": content(text)}]
        if options["system"]:
            messages.insert(0, {"role": "system", "content": options["system"]})
        return model.chat_prompt(messages)

    def tokens(text: str) -> int:
        try:
            return len(made(text))
        except ContextError as error:
            return error.needed

    if options["on_overflow"] == "error":
        return made(whole)
    room = model.context - reply_room(model.context, options["max_tokens"])
    needed = tokens(whole)
    cut = cut_front(whole, lambda text: tokens(text) <= room) if needed > room else None
    if cut is None:
        return made(whole)  # it fits, or nothing does
    rest, gone = cut
    prompt = made(rest)
    prompt.trimmed_tokens = needed - len(prompt)
    message = f"the first {gone} ({prompt.trimmed_tokens} tokens) of the {what} were left out"
    prompt.notices += (Notice("trimmed", message),)
    return prompt


def _follow(reply: Reply, live: bool) -> bool:
    """Wait for the reply, printing it if `live`. True when Ctrl+C ended it.

    The compute runs on a thread of its own: the main one must be free to take the Ctrl+C.
    """
    pieces: queue.SimpleQueue[str | BaseException | None] = queue.SimpleQueue()

    def work() -> None:
        try:
            for piece in reply:
                pieces.put(piece)
            pieces.put(None)
        except BaseException as error:
            pieces.put(error)

    worker = threading.Thread(target=work, name="reply", daemon=True)
    worker.start()
    printer = _Printer() if live else None
    interrupted = False
    while True:
        try:
            piece = pieces.get()
            if piece is None:
                break
            if isinstance(piece, BaseException):
                raise piece
            if printer is not None:
                printer.write(piece)
        except KeyboardInterrupt:
            interrupted = True
            reply.cancel()  # its end then comes through the queue
        except BaseException:
            reply.cancel()
            worker.join()
            raise
    worker.join()
    if printer is not None:
        printer.end()
    return interrupted


class _Printer:
    """Prints a reply as it comes, without what a terminal would obey; ends with a newline."""

    def __init__(self) -> None:
        from selm_edge.clean import Cleaner

        self._cleaner = Cleaner()
        self._last = "\n"

    def write(self, piece: str) -> None:
        text = self._cleaner.feed(piece)
        if text:
            self._last = text
            click.echo(text, nl=False)

    def end(self) -> None:
        rest = self._cleaner.finish()
        if not (rest or self._last).endswith("\n"):
            rest += "\n"
        click.echo(rest, nl=False)


def _print_text(text: str) -> None:
    from selm_edge.clean import clean

    click.echo(clean(text).rstrip("\n"))


def _result(
    reply: Reply, entry: Entry, model: Model, load_seconds: float, recalled: Sequence[Memory]
) -> dict[str, Any]:
    stats = reply.stats
    layers = model.layers if stats.mean_layers is None else stats.mean_layers
    return {
        "text": reply.text,
        "finish_reason": stats.finish_reason,
        "prompt_tokens": stats.prompt_tokens,
        "tokens": stats.tokens,
        "tokens_per_second": round(stats.tokens_per_second, 3),
        "time_to_first_token_s": round(stats.time_to_first_token, 6),
        "load_s": round(load_seconds, 6),
        "model": entry.name,
        "experts": stats.experts,
        "mean_layers": layers and round(layers, 3),
        "drafted_tokens": stats.drafted,
        "accepted_drafts": stats.accepted,
        "early_tokens": stats.early,
        "seed": reply.sampling.seed,
        "memories": [one.id for one in recalled],
        "trimmed_tokens": reply.prompt.trimmed_tokens,
        "notices": [notice.message for notice in reply.notices],
    }


def _explain(reply: Reply, model: Model, options: dict[str, Any]) -> None:
    """Why it ended, where that is not plain to see."""
    reason = reply.stats.finish_reason
    if reason == "length" and options["max_tokens"] is not None:
        note(f"stopped after {options['max_tokens']} tokens (--max-tokens)")
    elif reason == "context":
        more = "all that it was trained with" if model.full_context else "--context makes it larger"
        note(f"stopped: the context of {model.context} tokens is full ({more})")
    elif reason == "deadline":
        note(f"stopped after {options['deadline']:g} seconds (--deadline)")
