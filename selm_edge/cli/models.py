"""`selm models`: what can be chatted with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from selm_edge.cli.adapters import adapter
from selm_edge.cli.common import FAILED, human_bytes, json_option, note, plain, show_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from selm_edge.catalog import Catalog, Entry


@click.group()
def models() -> None:
    """List, add, remove, inspect and verify models.

    A GGUF file or an ONNX folder is registered where it lies: never copied, never deleted.

    \b
    Examples:
      selm models list
      selm models add ~/models/qwen2.5-0.5b-q4_0.gguf --name qwen
      selm models verify
    """


def _catalog() -> Catalog:
    from selm_edge.catalog import Catalog

    return Catalog()


models.add_command(adapter)


@models.command("list")
@json_option
def list_(as_json: bool) -> None:
    """The models there are; * marks the default."""
    from selm_edge import config
    from selm_edge.errors import SelmError

    catalog = _catalog()
    entries = catalog.list()
    for warning in catalog.warnings:
        note(warning)
    try:
        default = catalog.resolve(config.load().model).name
    except SelmError:
        default = None
    if as_json:
        show_json([{**entry.as_json(), "default": entry.name == default} for entry in entries])
        return
    if not entries:
        click.echo("no models yet. Add one: selm models add PATH/TO/model.gguf")
    width = max((len(entry.name) for entry in entries), default=0)
    for entry in entries:
        mark = "*" if entry.name == default else " "
        where = "part of the package" if entry.bundled else str(entry.path)
        problem = f"  ({entry.problem})" if entry.problem else ""
        size = human_bytes(entry.size)
        click.echo(plain(f"{mark} {entry.name:{width}}  {size:>9}  {where}{problem}"))


@models.command()
@click.argument("path", type=click.Path())
@click.option("--name", metavar="NAME", help="What to call it; default: the file's name.")
@json_option
def add(path: str, name: str | None, as_json: bool) -> None:
    """Register a GGUF file or an ONNX folder, once it has been opened without an error."""
    catalog = _catalog()
    entry = catalog.add(path, name)
    for warning in catalog.warnings:
        note(warning)
    if as_json:
        show_json(entry.as_json())
    else:
        click.echo(f"added {entry.name}: {plain(str(entry.path))}")
        click.echo(f"Try it: selm ask --model {entry.name} 'Hello, who are you?'")


@models.command()
@click.argument("name")
@json_option
def remove(name: str, as_json: bool) -> None:
    """Forget an added model. Its file stays."""
    entry = _catalog().remove(name)
    if as_json:
        show_json(entry.as_json())
    else:
        click.echo(f"removed {entry.name} from the list; {plain(str(entry.path))} stays")


@models.command()
@click.argument("model", required=False)
@json_option
def info(model: str | None, as_json: bool) -> None:
    """What a model (or a file) is: shape, size, tokenizer, template, licence."""
    from selm_edge import config

    entry = _catalog().resolve(model or config.load().model)
    facts = _facts(entry)
    if as_json:
        show_json(facts)
        return
    for key, value in facts.items():
        if key == "metadata":
            continue
        shown = human_bytes(value) if key.endswith("_bytes") else _in_words(value)
        click.echo(plain(f"{key:20} {shown}"))


def _facts(entry: Entry) -> dict[str, Any]:
    from selm_edge.backends import name_for
    from selm_edge.backends.native import NativeEngine
    from selm_edge.templates import ChatTemplate

    if name_for(str(entry.path)) == "onnx":
        return _onnx_facts(entry)
    engine = NativeEngine(str(entry.path), threads=None, context=1 << 24)
    core, vocabulary = engine.info, engine.tokenizer.info
    template = ChatTemplate.of(engine.metadata, engine.tokenizer)
    single = {k: v for k, v in engine.metadata.items() if not isinstance(v, list)}
    single.pop("tokenizer.chat_template", None)
    facts = {
        "name": entry.name,
        "path": str(entry.path),
        "licence": entry.licence or single.get("general.license"),
        "description": entry.description or single.get("general.description"),
        "architecture": core.architecture,
        "parameters": core.n_params,
        "file_bytes": core.file_bytes,
        "weight_bytes": core.weight_bytes,
        "layers": core.n_layer,
        "hidden": core.n_embd,
        "heads": core.n_head,
        "kv_heads": core.n_head_kv,
        "feed_forward": core.n_ff,
        **_own_kind(engine.metadata),
        "vocabulary": core.n_vocab,
        "context_trained": core.n_ctx_train,
        "tokenizer": vocabulary.model + (f" ({vocabulary.pre})" if vocabulary.pre else ""),
        "chat_template": template.source is not None,
        "instruction_set": core.isa,
        "metadata": single,
    }
    engine.close()
    return facts


def _onnx_facts(entry: Entry) -> dict[str, Any]:
    """What its ``model.json`` says; the hashes are compared, the graph is not opened."""
    from selm_edge.backends.onnx_folder import read

    folder = read(str(entry.path))
    single = {k: v for k, v in folder.metadata.items() if not isinstance(v, list)}
    template = single.pop("tokenizer.chat_template", None)
    return {
        "name": entry.name,
        "path": str(entry.path),
        "architecture": single.get("general.architecture"),
        "type": f"onnx, {folder.type}",
        "file_bytes": entry.size,
        "layers": folder.number("block_count"),
        "hidden": folder.width,
        **_own_kind(folder.metadata),
        "vocabulary": folder.vocabulary,
        "context_trained": folder.number("context_length"),
        "chat_template": template is not None,
        "metadata": single,
    }


def _own_kind(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What only files of our own architecture have: kinds of attention, experts, exits."""
    found: dict[str, Any] = {}
    kinds = metadata.get("selm.attention.kinds")
    if kinds:
        found["attention"] = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
    if metadata.get("selm.expert.names"):
        found["experts"] = metadata["selm.expert.names"]
        for name in ("kind", "route", "trunk_layers"):
            found[f"expert_{name}"] = metadata.get(f"selm.expert.{name}")
    if metadata.get("selm.exit.layers"):
        found["exits"] = metadata["selm.exit.layers"]
    return found


def _in_words(value: Any) -> Any:
    """Lists and counts as a line."""
    if isinstance(value, dict):
        return ", ".join(f"{count} {name}" for name, count in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else value


@models.command()
@click.argument("names", nargs=-1)
@json_option
def verify(names: tuple[str, ...], as_json: bool) -> int:
    """Check models: size, SHA-256, opening, every block's scales. All of them by default.

    The first check of an added model remembers its SHA-256; later ones compare. Exits 1 when
    something is wrong.
    """
    catalog = _catalog()
    chosen = names or tuple(entry.name for entry in catalog.list())
    verdicts = [catalog.verify(name) for name in chosen]
    if as_json:
        show_json([{"name": v.entry.name, "ok": v.ok, "checks": v.checks} for v in verdicts])
    else:
        for verdict in verdicts:
            click.echo(f"{verdict.entry.name}: {'ok' if verdict.ok else 'WRONG'}")
            for check, reason in verdict.checks.items():
                if reason is not None:
                    click.echo(plain(f"  {check}: {reason}"))
        if not verdicts:
            click.echo("no models to verify")
    return 0 if all(verdict.ok for verdict in verdicts) else FAILED
