"""Scales, minima and levels of one slice of blocks, with the least weighted squared error found.

A weight is scale * level, or scale * level - minimum. With the levels given, the best scale (and
minimum) is a weighted least squares fit; with these given, the best level is the nearest. So a
search tries several ranges that the levels may span, fits each, keeps the best, and then takes
turns. In a super-block, scales and minima are whole multiples of two f16 numbers; which multiples
is again decided by the error that each would leave, as the sums over a group say it.

Arrays are [groups, size, blocks] for weights and [groups, blocks] for what a group has once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

TINY = 1e-30  # a divisor that may be zero
TURNS = 2  # in which levels and codes are fitted to each other
NEIGHBOURS = (0, -1, 1)  # codes next to one that are tried with the levels which they would lead to
# Of the number by which the largest scale of a super-block would take the last code.
STEPS = (0.88, 0.92, 0.96, 1.0, 1.04, 1.08, 1.12, 1.16)


@dataclass(frozen=True)
class Grid:
    """What a block type can hold."""

    size: int  # weights that share a scale
    groups: int  # that share the f16 numbers
    low: int  # levels; those between are whole numbers, or those of the code book
    high: int
    # Ranges to try. Factors (above 1 the largest weights are cut off); with a minimum, shares by
    # which either end is moved inwards.
    stretches: tuple[float, ...]
    codes: tuple[int, int] = (1, 1)  # least and largest multiple of d that a scale can be
    minima: int = 0  # largest multiple of dmin that a minimum can be
    minimum: bool = False
    book: tuple[int, ...] = ()


class Fit(NamedTuple):
    levels: Tensor  # [groups, size, blocks], whole numbers as floats
    codes: Tensor  # [groups, blocks]
    minima: Tensor  # [groups, blocks]
    d: Tensor  # [blocks], exact in f16
    dmin: Tensor  # [blocks], exact in f16


class Sums(NamedTuple):
    """Over the weights x of each group with levels l and importance w: what an error depends on,

    sum w (x - (a l - b))^2 = xx + a^2 ll - 2 a b l + b^2 w - 2 a xl + 2 b x
    """

    ll: Tensor
    l: Tensor  # noqa: E741 - the level's own letter
    w: Tensor
    xl: Tensor
    x: Tensor

    def error(self, a: Tensor, b: Tensor) -> Tensor:
        """Less the constant xx."""
        return a * (a * self.ll - 2 * (b * self.l + self.xl)) + b * (b * self.w + 2 * self.x)


def half(values: Tensor) -> Tensor:
    """Rounded to what f16 holds."""
    return values.half().float()


def _over(numerator: Tensor, divisor: Tensor) -> Tensor:
    """Zero where there is nothing to divide by."""
    return torch.where(divisor.abs() > TINY, numerator / divisor, 0.0)


def _steps(around: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(around, dtype=like.dtype).view(-1, *[1] * like.dim())


class Search:
    """The fit of one slice; ``x`` and ``w`` are [groups, size, blocks]."""

    def __init__(self, grid: Grid, x: Tensor, w: Tensor) -> None:
        self.grid, self.x = grid, x
        # Large weights count a little more, as llama.cpp has it too. That costs hundredths of the
        # error, and takes a tenth off the divergence that an importance leaves: a fit by the plain
        # error shrinks the large ones, all in one direction.
        self.w = w = w * (x * x + (x * x).mean((0, 1))).sqrt()
        self.wx = w * x
        self.sum_w, self.sum_x = w.sum(1), self.wx.sum(1)
        if grid.book:
            book = torch.tensor(grid.book, dtype=torch.float32)
            steps = torch.arange(2 * grid.low, 2 * grid.high + 2) / 2 + 0.25
            self.nearest = book[(steps[:, None] - book).abs().argmin(1)]

    def rounded(self, scaled: Tensor) -> Tensor:
        """The nearest level; ``scaled`` is overwritten."""
        low, high = self.grid.low, self.grid.high
        if not self.grid.book:
            return scaled.round_().clamp_(low, high)
        # Two levels meet at a multiple of one half.
        at = scaled.sub_(low).mul_(2).clamp_(0, 2 * (high - low)).to(torch.int32)
        return self.nearest.index_select(0, at.view(-1)).view(at.shape)

    def sums(self, levels: Tensor) -> Sums:
        weighted = self.w * levels
        l = weighted.sum(1) if self.grid.minimum else self.sum_w  # noqa: E741 - as in Sums
        xl = (weighted * self.x).sum(1)
        return Sums(weighted.mul_(levels).sum(1), l, self.sum_w, xl, self.sum_x)

    def ideal(self, sums: Sums) -> tuple[Tensor, Tensor, Tensor]:
        """The best scale and minimum of each group, and by how much they lessen its error."""
        zero_scale = _over(sums.xl, sums.ll)
        if not self.grid.minimum:
            return zero_scale, torch.zeros_like(zero_scale), zero_scale * sums.xl
        mean = _over(sums.x, sums.w)
        inner, spread = sums.xl - mean * sums.l, sums.ll - _over(sums.l * sums.l, sums.w)
        a = torch.where(spread > 1e-6 * sums.ll, inner / spread.clamp(min=TINY), 0.0)
        b = a * _over(sums.l, sums.w) - mean
        gain = inner * a + mean * sums.x
        if self.grid.groups == 1:  # its minimum has a sign
            return a, b, gain
        # As the minimum cannot be negative, and with only one level it is all there is.
        free = (b >= 0) & (a >= 0)
        without = zero_scale.clamp(min=0)
        gain = torch.where(free, gain, without * sums.xl)
        return torch.where(free, a, without), torch.where(free, b, 0.0), gain

    def ranges(self) -> list[tuple[Tensor, Tensor]]:
        """Inverse scales and offsets to try: level = (x - offset) * inverse."""
        grid = self.grid
        top, bottom = self.x.amax(1), self.x.amin(1)
        if not grid.minimum:
            # Levels reach further down than up, so the largest weight may go to either end.
            extreme = torch.where(top > -bottom, top, bottom)
            zero = torch.zeros_like(top)
            ends = [_over(torch.full_like(top, end), extreme) for end in (grid.low, grid.high)]
            return [(end * factor, zero) for factor in grid.stretches for end in ends]
        if grid.groups > 1:
            bottom = bottom.clamp(max=0)
        width = top - bottom
        found = []
        for first in grid.stretches:
            for last in grid.stretches:
                inverse = _over(torch.full_like(width, grid.high), width * (1 - first - last))
                found.append((inverse, bottom + first * width))
        return found

    def first(self) -> Sums:
        """Of the best of all ranges."""
        best: Sums | None = None
        most = torch.empty(0)
        for inverse, offset in self.ranges():
            scaled = self.x - offset[:, None] if self.grid.minimum else self.x
            sums = self.sums(self.rounded(scaled * inverse[:, None]))
            gain = self.ideal(sums)[2]
            if best is None:
                best, most = sums, gain
                continue
            better = gain > most
            most = torch.where(better, gain, most)
            best = Sums(*(torch.where(better, n, o) for n, o in zip(sums, best, strict=True)))
        assert best is not None
        return best

    def levels(self, a: Tensor, b: Tensor) -> Tensor:
        inverse = _over(torch.ones_like(a), a)[:, None]
        scaled = (self.x + b[:, None]) * inverse if self.grid.minimum else self.x * inverse
        return self.rounded(scaled)

    def fit(self) -> Fit:
        sums = self.first()
        solve = self._alone if self.grid.groups == 1 else self._multiples
        for turn in range(TURNS + 1):
            codes, minima, d, dmin = solve(sums)
            if self.grid.groups > 1:
                codes, minima = self._neighbours(codes, minima, d, dmin)
            levels = self.levels(codes * d, minima * dmin)
            if turn < TURNS:
                sums = self.sums(levels)
        return Fit(levels, codes, minima, d, dmin)

    def _alone(self, sums: Sums) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One group is the block: its scale and minimum are the f16 numbers."""
        a, b, _ = self.ideal(sums)
        ones = torch.ones_like(a)
        d = half(a)
        if self.grid.minimum:
            b = _over(d * sums.l - sums.x, sums.w)
        return ones, ones, d[0], half(b)[0]

    def _multiples(self, sums: Sums) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        a, b, _ = self.ideal(sums)
        if not self.grid.minimum:
            return self._scale_codes(sums, a)
        return self._scale_and_minimum_codes(sums, a, b)

    def _scale_codes(self, sums: Sums, a: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        low, high = self.grid.codes
        top, bottom = a.amax(0), a.amin(0)
        extreme = torch.where(top > -bottom, top, bottom)
        steps = _steps(STEPS, extreme)
        tried = half(torch.cat([extreme / low * steps, extreme / high * steps]))  # [tries, blocks]
        codes = _over(a, tried[:, None]).round().clamp(low, high)
        # With the codes given, d is a fit of its own: the error falls by its gain.
        xl, ll = (codes * sums.xl).sum(1), (codes * codes * sums.ll).sum(1)
        best = _over(xl * xl, ll).argmax(0)
        d = half(_over(xl, ll).gather(0, best[None])[0])
        codes = _over(a, d).round().clamp(low, high)
        zero = torch.zeros_like(d)
        return codes, torch.zeros_like(a), d, zero

    def _scale_and_minimum_codes(
        self, sums: Sums, a: Tensor, b: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        high = self.grid.codes[1]
        # d by the error that it leaves while minima are free, then dmin by what that leaves.
        tried = half(a.amax(0) / high * _steps(STEPS, a[0]))
        codes = _over(a, tried[:, None]).round().clamp(0, high)
        scales = codes * tried[:, None]
        minima = _over(scales * sums.l - sums.x, sums.w).clamp(min=0)
        best = sums.error(scales, minima).sum(1).argmin(0)
        d = tried.gather(0, best[None])[0]
        codes = codes.gather(0, best.expand(1, len(a), -1))[0]
        b = _over(codes * d * sums.l - sums.x, sums.w).clamp(min=0)
        tried = half(b.amax(0) / self.grid.minima * _steps(STEPS, a[0]))
        minima = self._minima(b, tried[:, None])
        best = sums.error((codes * d)[None], minima * tried[:, None]).sum(1).argmin(0)
        dmin = tried.gather(0, best[None])[0]
        minima = minima.gather(0, best.expand(1, len(a), -1))[0]
        d, dmin = self._joint(sums, codes, minima, d, dmin)
        codes, minima = self._pairs(sums, a, d, dmin)
        return codes, minima, d, dmin

    def _minima(self, b: Tensor, dmin: Tensor) -> Tensor:
        return _over(b, dmin).round().clamp(0, self.grid.minima)

    def _pairs(self, sums: Sums, a: Tensor, d: Tensor, dmin: Tensor) -> tuple[Tensor, Tensor]:
        """Codes next to the ideal scale, each with the minimum that suits it; the best pair."""
        below = _over(a, d).floor()
        codes = torch.stack([below - 1, below, below + 1, below + 2]).clamp(0, self.grid.codes[1])
        b = _over(codes * d * sums.l - sums.x, sums.w)
        minima = self._minima(b, dmin)
        best = sums.error(codes * d, minima * dmin).argmin(0)[None]
        return codes.gather(0, best)[0], minima.gather(0, best)[0]

    def _neighbours(
        self, codes: Tensor, minima: Tensor, d: Tensor, dmin: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the sums say is near the truth only: levels change with the code."""
        least = torch.full_like(codes, torch.inf)
        kept = codes, minima
        for step in NEIGHBOURS:
            near = (codes + step).clamp(*self.grid.codes)
            sums = self.sums(self.levels(near * d, minima * dmin))
            b = minima
            if self.grid.minimum:
                b = self._minima(_over(near * d * sums.l - sums.x, sums.w), dmin)
            error = sums.error(near * d, b * dmin)
            better = error < least
            least = torch.where(better, error, least)
            kept = torch.where(better, near, kept[0]), torch.where(better, b, kept[1])
        return kept

    def _joint(
        self, sums: Sums, codes: Tensor, minima: Tensor, d: Tensor, dmin: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Least squares for both f16 numbers; those given where that has no better answer."""
        dd, mm = (codes * codes * sums.ll).sum(0), (minima * minima * sums.w).sum(0)
        dm = (codes * minima * sums.l).sum(0)
        dx, mx = (codes * sums.xl).sum(0), (minima * sums.x).sum(0)
        determinant = dd * mm - dm * dm
        sound = determinant > 1e-6 * dd * mm
        fitted = _over(dx * mm - dm * mx, determinant), _over(dx * dm - dd * mx, determinant)
        sound &= (fitted[0] > 0) & (fitted[1] > 0)
        return torch.where(sound, half(fitted[0]), d), torch.where(sound, half(fitted[1]), dmin)
