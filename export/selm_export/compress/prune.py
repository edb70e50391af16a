"""Width and depth pruning towards a shape or a size, within a budget.

Importance is found once, on the whole model, and every smaller one is cut from the whole one, so
that nothing depends on the way. The way to a size, or to where the budget ends, is a walk: each
step tries a little less of everything that may become less, and takes what costs the least
divergence per parameter saved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace

from selm_export.compress.calibration import Reference
from selm_export.compress.depth import exits_left, least_influential, shortened
from selm_export.compress.ladder import Goal, Rung, Say, Smaller, rung, small_enough
from selm_export.compress.structure import OF_EXIT, axes, parts, place
from selm_export.compress.width import Importance, Width, check, importance, narrowed
from selm_export.data.packing import Document
from selm_export.modeling.configuration import SelmConfig
from selm_export.modeling.model import SelmForCausalLM

COMPARED = 48  # documents that steps are compared on; the budget is held to others


@dataclass(frozen=True)
class Shape(Width):
    layers: int

    @staticmethod
    def of(config: SelmConfig) -> Shape:
        return Shape(**vars(Width.of(config)), layers=config.num_hidden_layers)


@dataclass(frozen=True)
class Wish:
    """The shape that is wanted; 0: as it is. Where ``goal`` asks for a size, what is named here is
    the least, and 0 has no least. Sizes of rows are multiples of ``multiple_of``, as blocks of a
    quantised type want it. A step of the walk saves about ``step`` of the parameters."""

    feed_forward: int = 0
    heads: int = 0
    kv_heads: int = 0
    width: int = 0
    layers: int = 0
    goal: Goal = field(default_factory=Goal)
    multiple_of: int = 32
    step: float = 0.05
    influence_again: bool = True
    tokens: int = 512  # of each document

    def least(self, config: SelmConfig) -> Shape:
        """Raises ValueError for a shape that cannot be."""
        now, free = Shape.of(config), self.goal.asks()
        shape = self._floor(now, bool(config.expert_names)) if free else self._wanted(now)
        check(now, shape)
        before, after = now.sizes(config.head_dim), shape.sizes(config.head_dim)
        for name in ("feed_forward", "width", "queries"):
            if not free and after[name] != before[name] and after[name] % self.multiple_of:
                told = f"{after[name]} is no multiple of {self.multiple_of}"
                raise ValueError(f"{name}: {told}, which blocks of weights want")
        return shape

    def _wanted(self, now: Shape) -> Shape:
        """KV heads stay if the heads named can share them, else go with their heads."""
        each = now.heads // now.kv_heads
        groups = self.heads and self.heads % now.kv_heads and self.heads % each == 0
        kv_heads = self.kv_heads or (self.heads // each if groups else now.kv_heads)
        return Shape(
            feed_forward=self.feed_forward or now.feed_forward,
            heads=self.heads or kv_heads * each,
            kv_heads=kv_heads,
            width=self.width or now.width,
            layers=self.layers or now.layers,
        )

    def _floor(self, now: Shape, experts: bool) -> Shape:
        each, unit = now.heads // now.kv_heads, self.multiple_of
        kv_heads = self.kv_heads or max(1, math.ceil(self.heads / each))
        return Shape(
            feed_forward=self.feed_forward or min(unit, now.feed_forward),
            heads=math.ceil(max(self.heads, kv_heads) / kv_heads) * kv_heads,
            kv_heads=kv_heads,
            width=self.width or min(unit, now.width),
            layers=self.layers or (2 if experts else 1),
        )


def _fewer(now: int, least: int, unit: int) -> Iterator[int]:
    """Smaller sizes down to the least: multiples of the unit, or the least itself."""
    size = now
    while size > least:
        size = max(least, (size - 1) // unit * unit)
        yield size


def _ways(now: Shape, least: Shape, unit: int, head_dim: int) -> dict[str, Iterable[Shape]]:
    """By what becomes less: smaller and smaller shapes."""
    each, least_each = now.heads // now.kv_heads, least.heads // least.kv_heads

    def heads_of(shapes: Iterable[Shape]) -> Iterable[Shape]:
        return [s for s in shapes if s.heads * head_dim % unit == 0]

    fewer_each = [now.kv_heads * n for n in range(each - 1, least_each - 1, -1)]
    fewer_groups = [(n, n * each) for n in range(now.kv_heads - 1, least.kv_heads - 1, -1)]
    return {
        "feed_forward": (
            replace(now, feed_forward=n) for n in _fewer(now.feed_forward, least.feed_forward, unit)
        ),
        "width": (replace(now, width=n) for n in _fewer(now.width, least.width, unit)),
        "heads": heads_of(replace(now, heads=n) for n in fewer_each),
        "kv_heads": heads_of(replace(now, kv_heads=n, heads=h) for n, h in fewer_groups),
        "layers": (replace(now, layers=n) for n in range(now.layers - 1, least.layers - 1, -1)),
    }


class Cutter:
    """Cuts a model to any smaller shape."""

    def __init__(
        self, model: SelmForCausalLM, documents: Sequence[Document], wish: Wish, least: Shape
    ) -> None:
        self.model, self.wish, self.least = model, wish, least
        self.found: Importance = importance(model, documents, wish.tokens)
        layers = model.config.num_hidden_layers - least.layers
        self.order = (
            least_influential(model, documents, layers, wish.tokens, again=wish.influence_again)
            if layers
            else []
        )
        self.whole = Shape.of(model.config)

    def gone(self, shape: Shape) -> list[int]:
        return self.order[: self.whole.layers - shape.layers]

    def cut(self, shape: Shape) -> SelmForCausalLM:
        made = self.model
        width = Width(shape.feed_forward, shape.heads, shape.kv_heads, shape.width)
        if width != Width.of(made.config):
            made = narrowed(made, self.found, width)
        gone = self.gone(shape)
        return shortened(made, gone) if gone else made

    def count(self, shape: Shape) -> int:
        """Parameters of that shape, without making it."""
        sizes, gone = shape.sizes(self.model.config.head_dim), self.gone(shape)
        prefixes = {p.prefix for p in parts(self.model) if p.number in gone}
        exits = {f"model.exits.{n}" for n in exits_left(self.model.config, gone).values()}
        total = 0
        for name, parameter in self.model.named_parameters():
            above, _, _ = name.rpartition(".")
            if place(name)[0] in prefixes or (OF_EXIT.fullmatch(name) and above not in exits):
                continue
            named = zip(axes(name), parameter.shape, strict=True)
            total += math.prod(sizes[axis] if axis else size for axis, size in named)
        return total

    def steps(self, now: Shape, save: float) -> list[tuple[str, Shape]]:
        """What may become less, each by so much that at least ``save`` parameters are saved, or as
        much as may be."""
        found, before = [], self.count(now)
        head_dim = self.model.config.head_dim
        for name, shapes in _ways(now, self.least, self.wish.multiple_of, head_dim).items():
            reached = None
            for shape in shapes:
                if name == "layers" and len(self.gone(shape)) < self.whole.layers - shape.layers:
                    break  # no more layers may go
                reached = shape
                if before - self.count(shape) >= save:
                    break
            if reached is not None:
                found.append((name, reached))
        return found


class _Walk:
    """From the whole model down."""

    def __init__(self, cutter: Cutter, held_out: Reference, say: Say) -> None:
        self.cutter, self.held_out, self.say = cutter, held_out, say
        self.goal, self.shape = cutter.wish.goal, cutter.whole
        self.model = cutter.model
        self.ladder = [self._rung(self.model, self.shape, "")]
        self.taken, self.divergence = 0, 0.0

    def _rung(self, model: SelmForCausalLM, shape: Shape, less: str) -> Rung:
        what = {"shape": asdict(shape), "less": less}
        return rung(model, self.goal, self.held_out, what)

    def arrived(self) -> bool:
        if self.goal.asks():
            return small_enough(self.ladder[self.taken], self.ladder[0], self.goal)
        return self.shape == self.cutter.least

    def _left(self) -> float:
        """Parameters that are still to be saved."""
        first, now = self.ladder[0], self.ladder[self.taken]
        if not self.goal.asks():
            return math.inf
        left = now.parameters - self.goal.keep * first.parameters
        if self.goal.bytes:
            left = max(left, (now.bytes - self.goal.bytes) * now.parameters / now.bytes)
        return max(left, 1.0)

    def _best(self, compared: Reference) -> tuple[str, Shape, SelmForCausalLM] | None:
        left = self._left()
        wanted = self.cutter.wish.step * self.ladder[0].parameters
        steps = self.cutter.steps(self.shape, min(wanted, left))
        if len(steps) < 2:
            return (*steps[0], self.cutter.cut(steps[0][1])) if steps else None
        best, least = None, math.inf
        before, divergence = self.cutter.count(self.shape), math.nan
        for less, shape in steps:
            model = self.cutter.cut(shape)
            mean = compared.divergence(model).mean
            saved = min(before - self.cutter.count(shape), left)  # more is not asked for
            price = (mean - self.divergence) / saved
            if price < least:
                best, least, divergence = (less, shape, model), price, mean
        self.divergence = divergence
        return best

    def at_once(self) -> None:
        self._take("at once", self.cutter.least, self.cutter.cut(self.cutter.least))

    def _take(self, less: str, shape: Shape, model: SelmForCausalLM) -> bool:
        step = self._rung(model, shape, less)
        self.ladder.append(step)
        within = step.divergence.mean <= self.goal.kld
        self.say(f"less {less}: {step}" + ("" if within else ", over the budget"))
        if within:
            self.model, self.shape, self.taken = model, shape, len(self.ladder) - 1
        return within

    def run(self, compared: Reference) -> None:
        """Step by step; steps are compared on other text than the budget is held to."""
        while not self.arrived():
            best = self._best(compared)
            if best is None and not self.goal.asks():  # only shapes between do not fit the blocks
                best = "at once", self.cutter.least, self.cutter.cut(self.cutter.least)
            if best is None or not self._take(*best):
                return


def prune(
    model: SelmForCausalLM,
    wish: Wish,
    calibration: Sequence[Document],
    held_out: Sequence[Document],
    *,
    say: Callable[[str], None] = lambda _: None,
) -> Smaller:
    """A smaller model of the wished shape or size.

    A shape without a budget is cut at once. Else the walk ends where the wish is fulfilled, where
    nothing may become less, or with the last step within the budget, which may be the model itself.
    Raises ValueError for a shape that cannot be."""
    least = wish.least(model.config)
    reference = Reference(model, held_out, wish.tokens)
    walk = _Walk(Cutter(model, calibration, wish, least), reference, say)
    if not wish.goal.asks() and wish.goal.kld == math.inf:
        walk.at_once()
    else:
        walk.run(Reference(model, calibration[:COMPARED], wish.tokens))
    figures = {"shape": asdict(walk.shape), "layers_removed": sorted(walk.cutter.gone(walk.shape))}
    return Smaller(walk.model, walk.ladder, walk.taken, walk.arrived(), figures)
