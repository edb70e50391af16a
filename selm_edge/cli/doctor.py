"""`selm doctor`: is everything as it should be?"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import click

from selm_edge.cli.common import FAILED, json_option, plain, show_json


@dataclass
class Check:
    """One line of the report. ``fix`` says what to do, where something needs attention."""

    topic: str
    item: str
    value: str
    ok: bool = True
    fix: str | None = None


@click.command()
@json_option
def doctor(as_json: bool) -> int:
    """Check the installation: versions, processor, paths, models, backends, terminal.

    Exits 1 when something needs attention.
    """
    checks = [
        *_versions(),
        *_processor(),
        *_paths(),
        *_memory(),
        *_models(),
        *_backends(),
        *_terminal(),
    ]
    healthy = all(check.ok for check in checks)
    if as_json:
        show_json({"ok": healthy, "checks": [asdict(check) for check in checks]})
        return 0 if healthy else FAILED
    topic = ""
    for check in checks:
        if check.topic != topic:
            topic = check.topic
            click.echo(click.style(topic, bold=True))
        mark = "  " if check.ok else "! "
        click.echo(plain(f"{mark}{check.item:22} {check.value}"))
        if check.fix:
            click.echo(plain(f"    {check.fix}"))
    click.echo("everything is fine" if healthy else "lines with ! need attention")
    return 0 if healthy else FAILED


def _versions() -> list[Check]:
    from selm_edge import __version__
    from selm_edge.backends import native

    checks = [
        Check("versions", "selm", __version__),
        Check("versions", "python", f"{platform.python_version()} ({sys.executable})"),
        Check("versions", "system", platform.platform()),
    ]
    missing = native.NativeBackend().available()
    if missing is None:
        from selm_edge import _core

        same = _core.version() == __version__
        fix = None if same else "Install the package again: its core is of another version."
        checks.append(Check("versions", "core", _core.version(), same, fix))
    else:
        checks.append(Check("versions", "core", "missing", False, missing))
    for name in ("textual", "click", "jinja2", "platformdirs"):
        try:
            checks.append(Check("versions", name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            fix = "pip install --force-reinstall selm-edge"
            checks.append(Check("versions", name, "missing", False, fix))
    checks.append(_sqlite())
    return checks


def _sqlite() -> Check:
    try:
        import apsw
    except ImportError as error:
        fix = "pip install --force-reinstall apsw-sqlite3mc"
        return Check("versions", "sqlite", f"missing ({error})", False, fix)
    version = apsw.sqlite_lib_version()
    if tuple(map(int, version.split("."))) < (3, 42):
        fix = "pip install --upgrade apsw-sqlite3mc (3.42 is needed to delete for real)"
        return Check("versions", "sqlite", version, False, fix)
    return Check("versions", "sqlite", f"{version} (apsw {apsw.apsw_version()})")


def _processor() -> list[Check]:
    from selm_edge.backends import native

    allowed, there = native.allowed_cores(), os.cpu_count() or 1
    checks = [
        Check("processor", "architecture", platform.machine()),
        Check("processor", "cores", f"{allowed} allowed of {there}"),
    ]
    if native.NativeBackend().available() is None:
        from selm_edge import _core

        asked, used = os.environ.get("SELM_ISA"), _core.isa()
        ok = asked in (None, "", used)
        fix = None if ok else f"SELM_ISA asks for {asked!r}, which is not available here: unset it."
        checks.append(Check("processor", "instruction set", used, ok, fix))
    return checks


def _paths() -> list[Check]:
    from selm_edge import config, paths

    checks = []
    for place in paths.places():
        value = str(place.path) if place.writable else f"{place.path}: {place.problem}"
        fix = None if place.writable else (
            "Nothing is kept there; the chat runs in memory."
            " Set SELM_HOME to a directory that you may write."
        )  # fmt: skip
        checks.append(Check("paths", place.purpose, value, place.writable, fix))
    database = paths.database_file()
    state = "there" if database.exists() else "made on first use"
    checks.append(Check("paths", "database", f"{database} ({state})"))
    preferences = config.load()
    state = "there" if paths.config_file().exists() else "none, defaults hold"
    checks.append(Check("paths", "preferences", f"{paths.config_file()} ({state})"))
    for problem in preferences.problems:
        checks.append(Check("paths", "preferences", problem, False, "Correct that entry."))
    return checks


def _memory() -> list[Check]:
    from selm_edge import config, paths
    from selm_edge.errors import SelmError
    from selm_edge.memory.embedder import open_embedder
    from selm_edge.store.database import Database
    from selm_edge.store.keys import state_of

    encrypted = state_of(paths.database_file()) == "encrypted"
    checks = [Check("memory", "passphrase", "set" if encrypted else "none")]
    empty = Database(None)
    problem = empty.vectors_problem
    empty.close()
    fix = "Memory is searched by words alone until then." if problem else None
    checks.append(Check("memory", "vectors", problem or "sqlite-vec", problem is None, fix))
    chosen = config.load().embedder
    try:
        embedder = open_embedder(chosen)
    except SelmError as error:
        cause, _, hint = str(error).partition("\n")
        checks.append(Check("memory", "embedder", cause, False, hint or "selm memory embedder"))
    else:
        value = "off" if embedder is None else f"{chosen or 'builtin'}, {embedder.dim} dimensions"
        if embedder is not None:
            embedder.close()
        checks.append(Check("memory", "embedder", value))
    return checks


def _models() -> list[Check]:
    from selm_edge.catalog import Catalog

    catalog = Catalog()
    entries = catalog.list()
    checks = [Check("models", "list", w, False, "Move that file away.") for w in catalog.warnings]
    if not any(entry.bundled for entry in entries):
        fix = "Install the package again, or add a model: selm models add PATH"
        checks.append(Check("models", "bundled model", "missing", False, fix))
    for entry in entries:
        if not entry.bundled:
            gone = entry.problem
            remedy = f"Put it back, or: selm models remove {entry.name}" if gone else None
            checks.append(Check("models", entry.name, gone or str(entry.path), not gone, remedy))
            continue
        wrong = {name: why for name, why in catalog.verify(entry.name).checks.items() if why}
        value = "; ".join(f"{name}: {why}" for name, why in wrong.items()) or "verified"
        remedy = "Install the package again." if wrong else None
        checks.append(Check("models", entry.name, value, not wrong, remedy))
    return checks


def _backends() -> list[Check]:
    from selm_edge import backends

    checks = []
    for name in backends.names():
        missing = backends.get(name).available()
        needed = name == "native"
        value = "available" if missing is None else "missing" if needed else "not installed"
        ok = missing is None or not needed
        checks.append(Check("backends", name, value, ok, missing))
    return checks


def _terminal() -> list[Check]:
    term = os.environ.get("TERM", "")
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    size = shutil.get_terminal_size()
    encoding = (getattr(sys.stdout, "encoding", None) or "unknown").lower()
    colour = os.environ.get("COLORTERM", "") in ("truecolor", "24bit")
    facts: dict[str, Any] = {
        "kind": f"{term or 'unset'}" + ("" if interactive else " (not interactive)"),
        "size": f"{size.columns}x{size.lines}",
        "colours": "24 bit" if colour else "256" if "256color" in term else "few",
        "encoding": encoding,
    }
    checks = [Check("terminal", name, value) for name, value in facts.items()]
    if interactive and "utf" not in encoding:
        checks[-1].ok = False
        checks[-1].fix = "Letters may be lost: set LANG to a UTF-8 locale, e.g. LANG=C.UTF-8."
    if interactive and term == "dumb":
        checks[0].fix = "The chat runs in --plain mode here."
    return checks
