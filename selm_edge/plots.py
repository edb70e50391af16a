"""Columns of block characters: a figure over time on any terminal, and in a file.

Of our own: plotext, which draws these, brings native code for one processor and a figure that the
whole process shares, for what are forty lines.
"""

from __future__ import annotations

from collections.abc import Sequence

_EIGHTHS = " ▁▂▃▄▅▆▇█"
_WIDEST = 4


def columns(
    values: Sequence[float | None],
    labels: Sequence[str],
    *,
    top: float,
    top_label: str,
    bottom_label: str = "0",
    width: int = 76,
    height: int = 4,
) -> list[str]:
    """One column for each value, from 0 to ``top``; lines from the top, axis and labels last.

    What is outside is drawn at the edge, None is a gap, and 0 is a mark that is not one. Where more
    values come than the width has room for, the newest (last) are drawn. ``labels`` say what the
    values are; those of the first and the last value on show are written.
    """
    margin = max(len(top_label), len(bottom_label))
    room = max(1, width - margin - 1)
    kept = list(values)[-room:]
    shown = list(labels)[-len(kept) :] if kept else []
    cell = max(1, min(_WIDEST, room // max(1, len(kept))))
    eighths = [_level(value, top, height * 8) for value in kept]
    lines = []
    for row in range(height - 1, -1, -1):
        blocks = (_EIGHTHS[min(8, max(0, level - row * 8))] for level in eighths)
        bars = "".join(block * max(1, cell - 1) + " " * (cell > 1) for block in blocks)
        label = top_label if row == height - 1 else ""
        lines.append(f"{label:>{margin}}│{bars}".rstrip())
    lines.append(f"{bottom_label:>{margin}}└{'─' * (cell * len(kept))}")
    if shown:
        between = cell * len(kept) - len(shown[0]) - len(shown[-1])
        ends = shown[0] if len(shown) == 1 else f"{shown[0]}{' ' * max(1, between)}{shown[-1]}"
        lines.append(" " * (margin + 1) + ends)
    return lines


def _level(value: float | None, top: float, most: int) -> int:
    """In eighths of a line; what is there has at least one."""
    if value is None:
        return 0
    share = value / top if top > 0 else 0.0
    return max(1, min(most, round(share * most)))
