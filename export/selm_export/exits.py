"""Teaches a finished model to speak early, so that it can draft for itself.

After some of the first layers the shared head speaks as well (an exit). The idea is LayerSkip's
(arXiv 2404.16710): a draft through an exit is verified by the layers above it, so the layers below
serve both. What the model said in the end before teaches the exits, and the end too, which is to
stay as it was: from the text it would learn by heart what it has read often. Drafts choose among
the most frequent tokens alone, as the head over all would cost more than the layers below.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
from tokenizers import Tokenizer

from selm_export import drafts, scoring
from selm_export.data import dataset
from selm_export.data.chat import TURN_END
from selm_export.data.packing import Batch
from selm_export.data.vocabulary import end_of_turn
from selm_export.errors import RecipeError
from selm_export.gguf_file import open_file
from selm_export.gguf_vocabulary import read_vocabulary
from selm_export.ledger import file_hash, hash_of, write_json
from selm_export.modeling.configuration import SelmConfig
from selm_export.modeling.file import model_of, read_model, write_like
from selm_export.modeling.model import SelmForCausalLM
from selm_export.network import Network, Shape
from selm_export.recipe import Recipe
from selm_export.train import Budget, Phase, Progress, Settings, Trainer, load_network

Say = Callable[[str], None]
COUNTED = 1000  # micro-batches whose replies decide the shortlist
OWN_REPLIES = 150  # written by the model itself, to measure drafts on
ANOTHER = "Give the file of a model that selm-export run has made"


@dataclass(frozen=True)
class Source:
    """A finished model: what its file says, its network (without exits yet), its tokenizer."""

    path: Path
    reader: gguf.GGUFReader
    network: Network
    tokenizer: Tokenizer


def read_source(path: Path) -> Source:
    """A file of the architecture ``qwen2`` with a tied head, weights of any type as floats."""
    reader = open_file(path, ANOTHER)
    model = model_of(reader, path, ("qwen2",))
    if not model.config.tie_word_embeddings:
        raise RecipeError(path, "the tensor output.weight has no place in it", ANOTHER)
    tokenizer, config = read_vocabulary(reader, path)
    if config.eot is None or config.eot != tokenizer.token_to_id(TURN_END):
        raise RecipeError(path, f"its turns do not end with {TURN_END}", ANOTHER)
    return Source(path, reader, network_of(model), tokenizer)


def network_of(model: SelmForCausalLM) -> Network:
    """The inverse of ``to_selm``, of a model without exits."""
    config, weights = model.config, model.state_dict()
    del weights["lm_head.weight"]
    shape = Shape(
        vocab=config.vocab_size, width=config.hidden_size, layers=config.num_hidden_layers,
        heads=config.num_attention_heads, kv_heads=config.num_key_value_heads,
        feed_forward=config.intermediate_size, context=config.max_position_embeddings,
        rope_base=config.rope_theta, norm_epsilon=config.rms_norm_eps,
    )  # fmt: skip
    network = Network(shape)
    network.load_state_dict(weights)
    return network.eval()


def with_exits(network: Network, exits: tuple[int, ...]) -> Network:
    """The same weights; an exit's norm begins as that of the end."""
    made = Network(replace(network.shape, exits=exits))
    given = network.state_dict()
    given |= {f"model.exits.{n}.weight": given["model.norm.weight"] for n in exits}
    made.load_state_dict(given)
    return made


def to_selm(network: Network, shortlist: list[int]) -> SelmForCausalLM:
    """The same model as `transformers` and the file know it."""
    shape = network.shape
    config = SelmConfig(
        vocab_size=shape.vocab, hidden_size=shape.width, intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads, max_position_embeddings=shape.context,
        rope_theta=shape.rope_base, rms_norm_eps=shape.norm_epsilon, attention_bias=True,
        exit_layers=shape.exits, draft_vocabulary=shortlist,
    )  # fmt: skip
    model = SelmForCausalLM(config)
    weights = network.state_dict()
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights)
    model.train(False)
    return model


def choose_shortlist(stream: Iterator[Batch], batches: int, size: int) -> list[int]:
    """The ``size`` tokens that replies hold most often, the most frequent first."""
    counts: Counter[int] = Counter()
    for _, batch in zip(range(batches), stream, strict=False):
        counts.update(batch.targets[batch.weights == 1.0].tolist())
    return [token for token, _ in counts.most_common(size)]


@dataclass(frozen=True)
class Wish:
    """What to make of a model: exits after these layers, drafts of so many tokens."""

    exits: tuple[int, ...]
    shortlist: int
    tokens: int
    workers: int | None = None


def settings_for(recipe: Recipe, source: Source, wish: Wish) -> Settings:
    """The recipe's ``[exits]`` on top of the trained model, at lower rates and in smaller steps."""
    known, shape = recipe.settings, source.network.shape
    for layer in wish.exits:
        if not 0 < layer < shape.layers:
            raise RecipeError(
                source.path, f"it has {shape.layers} layers, so no exit after layer {layer}",
                f"Ask for exits after layers 1 to {shape.layers - 1}",
            )  # fmt: skip
    if wish.shortlist > shape.vocab:
        raise RecipeError(
            source.path, f"it has {shape.vocab} tokens, so no shortlist of {wish.shortlist}",
            "Ask for a shorter one",
        )  # fmt: skip
    return replace(
        known,
        shape=replace(shape, exits=wish.exits),
        phases=(recipe.exits,),
        rates=replace(known.rates, matrix=0.015, rest=0.001, above=0.2),
        micro_batches=max(2, recipe.exits.follow),
        fast=False,  # as fast as compiled, and at once
        warmup_steps=20,
        decay_share=0.7,
        average=0.98,
        workers=wish.workers or known.workers,
    )


class Retrofit:
    """One run in a folder: data, training, the file, what it is worth."""

    def __init__(self, recipe: Recipe, source: Source, wish: Wish, work: Path, say: Say) -> None:
        self.recipe, self.source, self.wish, self.work, self.say = recipe, source, wish, work, say
        self.settings = settings_for(recipe, source, wish)
        work.mkdir(parents=True, exist_ok=True)
        training, held_out = work / "train.jsonl", work / "held-out.jsonl"
        if not (training.exists() and held_out.exists()):
            dataset.prepare(recipe, training, held_out)
        self.data = dataset.Sources(recipe, source.tokenizer, training)
        self.held_out = dataset.read_conversations(held_out)
        self.documents = [dataset.document(source.tokenizer, c) for c in self.held_out]
        stream = self._stream(self.settings.phases[0], 1)
        self.shortlist = choose_shortlist(stream, COUNTED, wish.shortlist)

    def _stream(self, phase: Phase, number: int) -> Iterator[Batch]:
        # Numbers that no phase of the recipe has: this is not the text of its run once more.
        return self.data.stream(phase, 100 + number)

    def train(self, finish_by: float | None, report_seconds: float = 300.0) -> bool:
        """True when it is done, false when it was asked to stop before."""
        checkpoint = self.work / "checkpoint.pt"
        self._same_run(checkpoint)
        trainer = Trainer(
            self.settings, self._stream, checkpoint, self.work / "log.jsonl",
            with_exits(self.source.network, self.wish.exits),
        )  # fmt: skip
        packing = self.recipe.packing
        per_step = self.settings.micro_batches * packing.rows * packing.tokens
        budget = Budget(max(1, self.wish.tokens // per_step), finish_by)
        return trainer.run(budget, self._report, report_seconds)

    def _same_run(self, checkpoint: Path) -> None:
        """A checkpoint of another model or of other exits is no beginning for this one."""
        note = self.work / "checkpoint.inputs"
        inputs = hash_of([file_hash(self.source.path), self.wish.exits])
        if checkpoint.exists() and (not note.exists() or note.read_text("utf-8") != inputs):
            raise RecipeError(
                checkpoint, "is of another model or of other exits", "Name another --work folder"
            )
        note.write_text(inputs, encoding="utf-8")

    def _report(self, network: Network, progress: Progress) -> dict[str, float]:
        found: dict[str, float] = {}
        mask = drafts.only(self.shortlist, network.shape.vocab)
        says, few = drafts.network_says(network), self.documents[::4]
        taught = drafts.teacher_forced(says, self.wish.exits, few, mask, network.shape.context)
        for layer, tally in taught.items():
            found[f"agreed_{layer}"] = round(tally.shares()["agreed"], 4)
        tallies = scoring.reply_bits(network, self.source.tokenizer, self.held_out[::4])
        found["bits_per_byte"] = round(scoring.total(tallies).bits_per_byte, 4)
        shown = ", ".join(f"{key} {value:.4f}" for key, value in found.items())
        self.say(f"  {progress.tokens / 1e6:.2f}M tokens, {progress.share:.0%}: {shown}")
        return found

    def write(self, output: Path) -> None:
        network = load_network(self.work / "checkpoint.pt")
        model = to_selm(network, self.shortlist)
        write_like(output, model, self.source.reader, gguf.GGMLQuantizationType.Q8_0)

    def measure(self, output: Path) -> dict[str, Any]:
        """Of the written file, quantised as it is."""
        shape = replace(self.source.network.shape, exits=self.wish.exits)
        end = end_of_turn(self.source.tokenizer)
        found = drafts.measure(read_model(output), shape, self.documents, end, OWN_REPLIES)
        write_json(self.work / "exits.json", found)
        return found


def run(
    path: Path, recipe: Recipe, wish: Wish, work: Path, *, output: Path, finish_by: float | None,
    say: Say,
) -> dict[str, Any] | None:  # fmt: skip
    """Trains, writes ``output`` and measures it; nothing if it was asked to stop before."""
    retrofit = Retrofit(recipe, read_source(path), wish, work, say)
    say("training")
    if not retrofit.train(finish_by):
        say("stopped; run the same command again to go on")
        return None
    retrofit.write(output)
    say(f"written: {output}; measuring")
    found = retrofit.measure(output)
    for name, figures in found.items():
        say(f"{name}: {drafts.told(figures)}")
    return found
