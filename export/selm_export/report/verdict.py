"""Which builds pay, and which stages: decided by the figures alone.

A build pays if no plainly quantised file of at most its size has a lower KLD from the teacher.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from selm_export.report.form import Build


@dataclass(frozen=True)
class Verdict:
    """``rival``: the plain file of at most this size with the lowest KLD; None if there is none.
    ``certain``: the two are further apart than two standard errors."""

    build: Build
    pays: bool
    rival: Build | None
    certain: bool


def _measured(builds: Sequence[Build]) -> list[Build]:
    return [b for b in builds if b.way is not None and b.size.known and b.kld.known]


def verdicts(builds: Sequence[Build]) -> list[Verdict]:
    """Of every build that is not plainly quantised and has both figures."""
    measured = _measured(builds)
    plain = [b for b in measured if not b.way]
    found = []
    for build in measured:
        if not build.way:
            continue
        rivals = [p for p in plain if p.size.value <= build.size.value]
        rival = min(rivals, key=lambda p: p.kld.value, default=None)
        if rival is None:
            found.append(Verdict(build, True, None, True))
            continue
        apart = abs(rival.kld.value - build.kld.value)
        error = math.hypot(*(e for e in (rival.kld.error, build.kld.error) if math.isfinite(e)))
        pays = not rival.kld.value < build.kld.value
        found.append(Verdict(build, pays, rival, apart > 2 * error))
    return found


def _size(build: Build) -> str:
    return f"{build.size.value / 1e6:.2f} MB, KLD {build.kld.value:.4g}"


def sentence(verdict: Verdict) -> str:
    build, rival = verdict.build, verdict.rival
    name = f"{build.name} ({build.path}; {_size(build)})"
    if rival is None:
        return f"{name} pays: no plainly quantised file is as small."
    doubt = "" if verdict.certain else " Chance may explain the difference."
    if verdict.pays:
        return (
            f"{name} pays: the best plainly quantised file of at most its size, {rival.name}"
            f" ({_size(rival)}), is further from the teacher.{doubt}"
        )
    return (
        f"{name} does not pay: {rival.name}, plainly quantised ({_size(rival)}), is no larger and"
        f" nearer to the teacher.{doubt}"
    )


def conclusions(builds: Sequence[Build]) -> list[str]:
    """In plain sentences: the stages that pay at this size, those that do not, then each build."""
    found = verdicts(builds)
    plain = [b for b in _measured(builds) if not b.way]
    if not plain:
        return ["Nothing can be said of what pays: no plainly quantised file was measured."]
    if not found:
        return ["Nothing can be said of what pays: only plainly quantised files were measured."]
    kinds = list(dict.fromkeys(kind for v in found for kind in v.build.way or ()))
    paying = {kind for v in found if v.pays for kind in v.build.way or ()}
    said = []
    for title, some in (
        ("pays at this size: at least one build that it is part of does", paying),
        ("does not pay at this size: no build that it is part of does", set(kinds) - paying),
    ):
        said += [f"{kind} {title}." for kind in kinds if kind in some]
    return [*said, *(sentence(v) for v in found)]
