"""All figures of one finished file: what `selm-export evaluate` gives, and the report of a recipe
holds for each build. Computed by the backend that a device would run it with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selm_export.data.chat import Conversation
from selm_export.data.packing import Document
from selm_export.errors import RecipeError
from selm_export.report import evaluate, routing, scores, speed

if TYPE_CHECKING:
    from selm_export.report.quality import Quality

Say = Callable[[str], None]
BACKENDS = ("native", "llama-cpp", "onnx")


@dataclass(frozen=True)
class Wish:
    """What is to be measured beside the likelihood of the conversations' replies."""

    backend: str = "native"
    context: int = 4096
    tasks: Mapping[str, Path] = field(default_factory=dict)  # each with its file or data folder
    questions: int | None = None  # of each task, at most
    against: Path | None = None  # the reference's file
    speed: bool = False


@dataclass(frozen=True)
class Build:
    path: Path
    file_bytes: int
    parameters: int | None  # None where the file does not say
    score: evaluate.Score | None = None
    routing: routing.Routing | None = None
    quality: Mapping[str, Quality] = field(default_factory=dict)  # by place
    scores: Sequence[scores.Scored] = ()
    speed: speed.Speed | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values; a part that was not measured is left out."""
        found: dict[str, Any] = {"file": self.path.name, "file_bytes": self.file_bytes}
        if self.parameters is not None:
            found["parameters"] = self.parameters
        if self.score is not None:
            found.update(self.score.summary())
        if self.routing is not None:
            mixed = self.routing.mixed()
            found["by_expert"] = {name: e.value for name, e in mixed.by_expert.items()}
            found["route"] = {name: p.route for name, p in self.routing.domains().items()}
            found["routing"] = self.routing.as_json()
        if self.quality:
            found["quality"] = {place: q.as_json() for place, q in self.quality.items()}
        if self.scores:
            found["scores"] = {s.task: s.as_json() for s in self.scores}
        if self.speed is not None:
            found["speed"] = asdict(self.speed)
        return found


def bytes_of(path: Path) -> int:
    """Of a model's file, with the data that an ONNX file keeps beside it; of all in a folder."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    beside = [f for f in path.parent.glob(f"{path.name}?data*") if path.suffix == ".onnx"]
    return sum(file.stat().st_size for file in (path, *beside))


def parameters_of(path: Path) -> int | None:
    """Of a GGUF file: the elements of its tensors."""
    import gguf

    if path.suffix != ".gguf":
        return None
    try:
        reader = gguf.GGUFReader(path)
    except (OSError, ValueError, IndexError) as problem:
        raise RecipeError(
            path, f"not a GGUF file that can be read ({problem})", "Export it again"
        ) from problem
    return sum(int(tensor.n_elements) for tensor in reader.tensors)


def _experts(core: evaluate.Core) -> bool:
    return bool(core.metadata.get("selm.expert.names"))


def documents(
    core: evaluate.Core, labelled: Sequence[tuple[str, Conversation]], context: int
) -> list[Document]:
    """Those that hold a reply, as the core reads them."""
    template = evaluate.template_of(core)
    texts = [evaluate.read(core, conversation, template, context) for _, conversation in labelled]
    return [Document(text.ids, text.reply) for text in texts if any(text.reply)]


def quality_against(
    core: evaluate.Core, path: Path, labelled: Sequence[tuple[str, Conversation]], wish: Wish
) -> Mapping[str, Quality]:
    """Against the reference's file, in the same backend. Both must read the same tokens."""
    from selm_export.report import quality

    assert wish.against is not None
    other = evaluate.load_core(wish.against, wish.context, wish.backend)
    given = documents(core, labelled, wish.context)
    if [d.ids for d in given] != [d.ids for d in documents(other, labelled, wish.context)]:
        raise RecipeError(
            path, f"reads text as other tokens than {wish.against} does",
            "Compare with a file of the same tokenizer and chat template",
        )  # fmt: skip
    forward, reference = quality.of_core(core), quality.of_core(other)
    return quality.compare(forward, reference, given, context=wish.context, name=str(path))


def measure(
    path: Path, labelled: Sequence[tuple[str, Conversation]], wish: Wish, say: Say
) -> Build:
    """``labelled``: conversations with their domains; none of them is fine where only tasks or
    speed are asked for. RecipeError names the file, or the data, that cannot be used."""
    core = evaluate.load_core(path, wish.context, wish.backend)
    wish = replace(wish, context=min(wish.context, core.context))  # as long as it was trained for
    found: dict[str, Any] = {"score": None}
    if labelled and _experts(core) and wish.backend == "native":
        say(f"{path.name}: {len(labelled)} conversations, by route and by each expert alone")
        template = evaluate.template_of(core)
        texts = [(d, evaluate.read(core, c, template, wish.context)) for d, c in labelled]
        ensemble = routing.CoreEnsemble(path, wish.context)
        route = str(core.metadata.get("selm.expert.route"))
        found["routing"] = routing.measure(ensemble, texts, route)
        found["score"] = found["routing"].score()
    elif labelled:
        say(f"{path.name}: {len(labelled)} conversations")
        conversations = [conversation for _, conversation in labelled]
        found["score"] = evaluate.evaluate(core, conversations, wish.context)
    if wish.against is not None:
        say(f"{path.name}: against {wish.against.name}")
        found["quality"] = quality_against(core, path, labelled, wish)
    scored = []
    for task, source in wish.tasks.items():
        say(f"{path.name}: {task}")
        scored.append(scores.score(core, task, source, context=wish.context, count=wish.questions))
    if wish.speed:
        say(f"{path.name}: speed")
        found["speed"] = speed.measure(path)
    return Build(path, bytes_of(path), parameters_of(path), scores=scored, **found)


def told(scored: scores.Scored) -> str:
    """One line: the score, its ±, how many questions, and whether chance does as well."""
    name, value = next(iter(scored.figures.items()))
    figure = f"{value.value:.1f} ± {value.error:.1f}"
    if name != "bleu":
        figure = f"{100 * value.value:.1f} ± {100 * value.error:.1f} %"
    text = f"{scored.task} {name.replace('_', ' ')} {figure} of {scored.count}"
    if scored.too_long:
        text += f" ({scored.too_long} too long for the context, counted as not answered)"
    if scored.chance:
        above = "above" if scored.above_chance else "not above"
        text += f", {above} chance ({100 * scored.chance:.1f} %)"
    return text
