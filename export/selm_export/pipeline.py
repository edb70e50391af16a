"""The recipe's six stages: data, tokenizer, train, gguf, evaluate, card."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selm_export.data import dataset
from selm_export.data.corpus import source_files
from selm_export.data.vocabulary import load_vocabulary
from selm_export.gguf_file import Label, write_gguf
from selm_export.ledger import Ledger, Stage, file_hash, hash_of, write_json
from selm_export.network import Network, parameter_count
from selm_export.recipe import Recipe
from selm_export.report import card, evaluate, metrics, scoring
from selm_export.train import Budget, Progress, Trainer, load, load_network

Say = Callable[[str], None]
REPORT_SECONDS = 300.0


@dataclass(frozen=True)
class Pipeline:
    recipe: Recipe
    work: Path
    output: Path
    finish_by: float | None
    keep: bool  # the checkpoint, though it was made from something else
    say: Say

    def path(self, name: str) -> Path:
        return self.work / name

    @property
    def model_file(self) -> str:
        return f"{self.recipe.name}-q8_0.gguf"

    def stages(self, ledger: Ledger) -> list[Stage]:
        """Each stage's inputs: its part of the recipe, and what the stages before it wrote."""
        recipe, table = self.recipe, self.recipe.table
        data = [self.path("train.jsonl"), self.path("held-out.jsonl")]
        tokenizer, checkpoint = self.path("tokenizer.json"), self.path("checkpoint.pt")
        model, measured = self.path(self.model_file), self.path("metrics.json")
        published = [self.output / self.model_file, *self._published()]
        return [
            Stage("data", lambda: [self._data_hashes(), table["split"]], data, self.run_data),
            Stage(
                "tokenizer", lambda: [ledger.digest("data"), table["vocabulary"], recipe.seed],
                [tokenizer], self.run_tokenizer,
            ),
            Stage(
                "train", lambda: self._train_inputs(ledger), [checkpoint],
                lambda: self.run_train(hash_of(self._train_inputs(ledger))),
            ),
            Stage(
                "gguf", lambda: [ledger.digest("train"), ledger.digest("tokenizer"), recipe.title,
                               recipe.sampling],
                [model], self.run_gguf,
            ),
            Stage(
                "evaluate",
                lambda: [ledger.digest("gguf"), ledger.digest("data"), table["evaluate"]],
                [measured], self.run_evaluate,
            ),
            Stage(
                "card", lambda: [ledger.digest("gguf"), ledger.digest("evaluate")], published,
                self.run_card,
            ),
        ]  # fmt: skip

    def _data_hashes(self) -> dict[str, str]:
        return {
            path.name: file_hash(path)
            for source in self.recipe.sources()
            for path in source_files(self.recipe.data, source)
        }

    def _train_inputs(self, ledger: Ledger) -> list[Any]:
        table = self.recipe.table
        made = [ledger.digest("data"), ledger.digest("tokenizer")]
        return [*made, table["model"], table["train"], self.recipe.seed]

    def _set_aside(self, inputs: str) -> None:
        """A checkpoint of another recipe, or of a finished run, is no beginning for this one."""
        checkpoint, note = self.path("checkpoint.pt"), self.path("checkpoint.inputs")
        same = note.exists() and note.read_text(encoding="utf-8") == inputs
        if checkpoint.exists() and not self.keep and not (same and load_share(checkpoint) < 1.0):
            checkpoint.replace(self.path("checkpoint-before.pt"))
            self.path("log.jsonl").replace(self.path("log-before.jsonl"))
            self.say("  the checkpoint is of another run: kept as checkpoint-before.pt")
        note.write_text(inputs, encoding="utf-8")

    def _published(self) -> list[Path]:
        name = self.recipe.name
        return [self.output / f"{name}{end}" for end in (".json", "-card.md", "-loss.png")]

    def run_data(self) -> bool:
        counts = dataset.prepare(self.recipe, self.path("train.jsonl"), self.path("held-out.jsonl"))
        self.say("  conversations: " + ", ".join(f"{k} {v:,}" for k, v in counts.items()))
        return True

    def run_tokenizer(self) -> bool:
        tokenizer = dataset.make_vocabulary(self.recipe, self.path("train.jsonl"))
        tokenizer.save(str(self.path("tokenizer.json")))
        return True

    def run_train(self, inputs: str) -> bool:
        recipe = self.recipe
        self._set_aside(inputs)
        tokenizer = load_vocabulary(self.path("tokenizer.json"))
        sources = dataset.Sources(recipe, tokenizer, self.path("train.jsonl"))
        held_out = dataset.read_conversations(self.path("held-out.jsonl"))
        trainer = Trainer(
            recipe.settings, sources.stream, self.path("checkpoint.pt"), self.path("log.jsonl")
        )
        per_step = recipe.settings.micro_batches * recipe.packing.rows * recipe.packing.tokens
        began, from_share = time.time(), trainer.progress.share

        def report(network: Network, progress: Progress) -> dict[str, float]:
            bits = scoring.total(scoring.reply_bits(network, tokenizer, held_out)).bits_per_byte
            gone = max(1e-9, progress.share - from_share)
            left = (time.time() - began) / gone * (1 - progress.share)
            self.say(
                f"  {progress.tokens / 1e6:.2f}M tokens, {progress.share:.0%}, held-out bits per"
                f" byte {bits:.3f}, about {left / 60:.0f} min left"
            )
            return {"bits_per_byte": round(bits, 4)}

        budget = Budget(max(1, recipe.tokens // per_step), self.finish_by)
        return trainer.run(budget, report, REPORT_SECONDS)

    def run_gguf(self) -> bool:
        network = load_network(self.path("checkpoint.pt"))
        tokenizer = load_vocabulary(self.path("tokenizer.json"))
        label = Label(self.recipe.title)
        write_gguf(self.path(self.model_file), network, tokenizer, label, self.recipe.sampling)
        return True

    def run_evaluate(self) -> bool:
        """By the inference core, on the finished file: what a device will run."""
        recipe, context = self.recipe, self.recipe.settings.shape.context
        core = evaluate.load_core(self.path(self.model_file), context)
        held_out = dataset.read_conversations(self.path("held-out.jsonl"))
        measured = metrics.measure(core, held_out, context, recipe.questions, self.say)
        measured["parameters"] = parameter_count(Network(recipe.settings.shape))
        measured["training"] = _progress(self.path("checkpoint.pt"))
        write_json(self.path("metrics.json"), measured)
        return True

    def run_card(self) -> bool:
        self.output.mkdir(parents=True, exist_ok=True)
        model = self.output / self.model_file
        shutil.copyfile(self.path(self.model_file), model)
        measured = json.loads(self.path("metrics.json").read_text(encoding="utf-8"))
        name = self.recipe.name
        write_json(
            self.output / f"{name}.json",
            {
                "name": name, "title": self.recipe.title, "file": model.name,
                "size": model.stat().st_size, "sha256": file_hash(model),
                "license": "Apache-2.0", "recipe": "export/selm_export/recipes/bundled.toml",
                "metrics": measured,
            },
        )  # fmt: skip
        card.draw_curve(self.path("log.jsonl"), self.output / f"{name}-loss.png")
        text = card.write_card(self.recipe, measured, model.stat().st_size, _counts(self.work))
        (self.output / f"{name}-card.md").write_text(text, encoding="utf-8")
        return True


def load_share(checkpoint: Path) -> float:
    """How much of its run a checkpoint has done."""
    return float(load(checkpoint)["progress"]["share"])


def _progress(checkpoint: Path) -> dict[str, Any]:
    found: dict[str, Any] = load(checkpoint)["progress"]
    return {"steps": found["step"], "tokens": found["tokens"], "seconds": round(found["seconds"])}


def _counts(work: Path) -> dict[str, int]:
    counts: dict[str, int] = {}
    for c in dataset.read_conversations(work / "train.jsonl"):
        counts[dataset.family(c)] = counts.get(dataset.family(c), 0) + 1
    counts["held out"] = len(dataset.read_conversations(work / "held-out.jsonl"))
    return counts
