"""A Jinja2 environment for templates that come out of a model file, that is: from anybody.

Jinja2's ImmutableSandboxedEnvironment keeps a template away from Python's insides. It does not keep
it from using up the machine: ``{% set x = x ~ x %}`` forty times is a terabyte, and nested lists
take exponential time to print. This one also bounds

* the text made along the way and at the end (every operation that makes text is charged for it),
* containers, by everything printed if they were printed, shared parts counted each time,
* numbers, by their bits,
* steps and processor time, by a trace function on the template's own lines and calls.

Filters, methods and callables are lists of what chat templates use; all else is refused. What is
refused raises `TemplateRefused`, so the caller can go on with a template of its own.
"""

from __future__ import annotations

import datetime
import html
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from types import CodeType, FrameType
from typing import Any, NoReturn, cast

from jinja2 import Template, Undefined, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import do_round
from jinja2.parser import Parser
from jinja2.runtime import LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MAX_TEMPLATE = 128 * 1024
"""Characters of a template; the longest in use have about 20,000."""
MAX_SECONDS = 2.0
MAX_STEPS = 2_000_000
MAX_BITS = 256
_LOOK_EVERY = 16  # steps between two looks at the clock
_TEXT_FLOOR = 1 << 20  # characters one value may have, whatever the input's size
_MADE_FACTOR = 64  # all values together, in multiples of that

_STR_METHODS = frozenset(
    str.split(
        "capitalize count endswith find index isalnum isalpha isdigit islower isspace isupper join"
        " lower lstrip partition removeprefix removesuffix replace rfind rpartition rsplit rstrip"
        " split splitlines startswith strip title upper"
    )
)
_DICT_METHODS = frozenset({"get", "items", "keys", "values", "copy"})
_LIST_METHODS = frozenset({"index", "count", "copy"})
_FILTERS = str.split(
    "abs capitalize count d default dictsort first float items last length list lower map max min"
    " reject rejectattr reverse select selectattr sort sum title trim unique upper"
)
_VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))
_PERCENT = re.compile(r"(?:[^%]|%[sdr%])*", re.S)
_STRFTIME = re.compile(r"(?:[^%]|%-?[A-Za-z%])*", re.S)


class TemplateRefused(TemplateError):
    """The template asked for more than it may have."""


class TemplateTooSlow(TemplateRefused):
    """It used up its steps or its time."""


class TemplateComplaint(TemplateError):
    """The template called raise_exception: it does not accept these messages."""


class _Budget:
    """What one rendering (or compiling) has left."""

    def __init__(self, text: int) -> None:
        self.text = text
        self.made = text * _MADE_FACTOR
        self.steps = self._next_look = MAX_STEPS
        # Of this thread's own work: a busy machine must not make a good template fail.
        self._ends = time.thread_time() + MAX_SECONDS

    def charge(self, size: int) -> None:
        """Account for a value of that many characters, before it is made where that is possible."""
        if size > self.text:
            raise TemplateRefused(f"a text of {size} characters; the limit is {self.text}")
        self.made -= size
        if self.made < 0:
            raise TemplateRefused("too much text made along the way")
        self.step()

    def step(self, count: int = 1) -> None:
        self.steps -= count
        if self.steps < 0:
            raise TemplateTooSlow(f"more than {MAX_STEPS} steps")
        if self.steps <= self._next_look:  # the clock is a system call
            self._next_look = self.steps - _LOOK_EVERY
            if time.thread_time() > self._ends:
                raise TemplateTooSlow(f"took longer than {MAX_SECONDS:g} seconds")


class _BoundedCode(CodeGenerator):
    """Sends the constructs that can grow a value through the environment."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.join_values((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        self.write("environment.checked(")
        super().visit_List(node, frame)
        self.write(")")

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self.write("environment.checked(")
        super().visit_Dict(node, frame)
        self.write(")")

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        if node.ctx != "load":
            super().visit_Tuple(node, frame)
            return
        self.write("environment.checked(")
        super().visit_Tuple(node, frame)
        self.write(")")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        if not isinstance(node.arg, nodes.Slice):
            super().visit_Getitem(node, frame)
            return
        self.write("environment.cut(")
        self.visit(node.node, frame)
        for part in (node.arg.start, node.arg.stop, node.arg.step):
            self.write(", ")
            if part is None:
                self.write("None")
            else:
                self.visit(part, frame)
        self.write(")")


class _Generation(Extension):
    """``{% generation %}`` marks the reply for training; here it is only its content."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    code_generator_class = _BoundedCode
    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "**", "%"})

    def __init__(self) -> None:
        self._local = threading.local()
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            finalize=self._printable,
            cache_size=0,
            extensions=[loopcontrols, _Generation],
        )
        self.globals = {
            "namespace": Namespace,
            "dict": dict,
            "range": self.globals["range"],
            "raise_exception": _complain,
            "strftime_now": _strftime_now,
        }
        self.filters = {name: self._charged(self.filters[name]) for name in _FILTERS}
        self.filters.update(
            tojson=self._tojson,
            join=self._join,
            replace=self._replace,
            indent=self._indent,
            string=self._text,
            int=_int,
            round=_round,
            safe=self._text,
            e=lambda value: self._make(html.escape(self._text(value))),
            escape=lambda value: self._make(html.escape(self._text(value))),
        )

    # ---- The two things it is for ------------------------------------------------------------

    def load(self, source: str) -> Template:
        if len(source) > MAX_TEMPLATE:
            raise TemplateRefused(f"{len(source)} characters; the limit is {MAX_TEMPLATE}")
        with self._bounded(_TEXT_FLOOR):
            return self.from_string(source)

    def run(self, template: Template, variables: Mapping[str, Any], input_size: int) -> str:
        """Render; input_size is the length of all text in `variables`."""
        with self._bounded(_TEXT_FLOOR + 8 * input_size) as budget, _traced(budget):
            return template.render(variables)

    @contextmanager
    def _bounded(self, text: int) -> Iterator[_Budget]:
        self._local.budget = budget = _Budget(text)
        try:
            yield budget
        finally:
            del self._local.budget

    @property
    def budget(self) -> _Budget:
        budget: _Budget = self._local.budget
        return budget

    # ---- Called from compiled templates ------------------------------------------------------

    def concat(self, parts: Iterable[str]) -> str:
        """Jinja's join of output: of the whole, of a macro, of a ``{% set %}`` block."""
        out: list[str] = []
        size = 0
        for part in parts:
            size += len(part)
            if size > self.budget.text:
                raise TemplateRefused(f"output over {self.budget.text} characters")
            out.append(part)
        self.budget.charge(size)
        return "".join(out)

    def join_values(self, values: Iterable[Any]) -> str:
        return self.concat([self._text(value) for value in values])

    def checked(self, value: Any) -> Any:
        """A container, if all that it holds may be printed; shared parts count each time."""
        self._weigh(value)
        return value

    def cut(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        return self._make(value[slice(start, stop, step)])

    def getitem(self, obj: Any, argument: Any) -> Any:
        self.budget.step()
        return super().getitem(obj, argument)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if isinstance(left, (int, float)) and isinstance(right, (int, float)):
            return self._number(operator, left, right)
        if operator == "+" and isinstance(left, (str, list, tuple)):
            self.budget.charge(self._weight(left) + self._weight(right))
        elif operator == "*":
            sequence, times = (right, left) if isinstance(left, int) else (left, right)
            if isinstance(times, int):
                self.budget.charge(self._weight(sequence) * max(0, times))
        elif operator == "%" and isinstance(left, str) and not _PERCENT.fullmatch(left):
            raise TemplateRefused("a format with a width")
        elif operator == "%" and isinstance(left, str):
            parts = right if isinstance(right, tuple) else (right,)
            self.budget.charge(len(left) + 10 * sum(self._weight(part) for part in parts))
        return self._make(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        __self.budget.step()
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str):
            if name == "replace":
                return __self._replace(owner, *args, **kwargs)
            if name == "join":
                return __self._join(args[0] if args else (), owner)
            allowed = name in _STR_METHODS
            __self.budget.charge(len(owner))
        elif isinstance(owner, dict):
            allowed = name in _DICT_METHODS
        elif isinstance(owner, (list, tuple)):
            allowed = name in _LIST_METHODS
        else:
            allowed = (
                isinstance(__obj, (Macro, LoopContext, Undefined))
                or isinstance(owner, LoopContext)
                or any(__obj is known for known in __self.globals.values())
            )
        if not allowed:
            raise SecurityError(f"calling {name or type(__obj).__name__} is not allowed")
        return __self._make(super().call(__context, __obj, *args, **kwargs))

    # ---- Bounds of single values -------------------------------------------------------------

    def _weigh(self, value: Any) -> int:
        """About the characters that a container prints as. Refused before it takes long: each
        container was weighed when it was made, so this walk is no longer than the limit."""
        weight, left, limit = 0, [value], self.budget.text
        while left:
            item = left.pop()
            weight += len(item) + 1 if isinstance(item, str) else 1
            if isinstance(item, Mapping):
                left += item.keys()
                left += item.values()
            elif isinstance(item, (list, tuple, *_VIEWS)):
                left.extend(cast("list[Any]", item))
            elif item is not None and not isinstance(item, (str, int, float, Undefined)):
                raise TemplateRefused(f"a {type(item).__name__} inside a list")
            if weight + len(left) > limit:
                raise TemplateRefused(f"a list over {limit} characters")
        self.budget.step(1 + weight // 8)
        return weight

    def _weight(self, value: Any) -> int:
        if isinstance(value, str):
            return len(value)
        return self._weigh(value) if isinstance(value, (list, tuple, Mapping, *_VIEWS)) else 8

    def _make(self, value: Any) -> Any:
        """Charge for a value that was just made."""
        if isinstance(value, str):
            self.budget.charge(len(value))
        elif isinstance(value, (list, tuple, Mapping, *_VIEWS)):
            self.checked(value)
        elif isinstance(value, int) and value.bit_length() > MAX_BITS:
            raise TemplateRefused("a number too long")
        return value

    def _number(self, operator: str, left: float, right: float) -> Any:
        if operator == "**" and abs(right) > MAX_BITS:
            raise TemplateRefused("a power too high")
        self._make(left)
        self._make(right)
        return self._make(self.binop_table[operator](left, right))

    def _text(self, value: Any) -> str:
        text = str(self._printable(value))
        self.budget.charge(len(text))
        return text

    def _printable(self, value: Any) -> Any:
        """What ``{{ value }}`` prints; generators, macros and namespaces have no text."""
        if isinstance(value, str):
            self.budget.step()
            return str(value)
        if value is None or isinstance(value, (int, float, Undefined)):
            return self._make(value)
        if isinstance(value, (list, tuple, Mapping, *_VIEWS)):
            return str(self.checked(value))
        raise TemplateRefused(f"a {type(value).__name__} has no text")

    # ---- Filters of our own ------------------------------------------------------------------

    def _charged(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)  # keeps jinja's marks on it (pass_environment ...)
        def charged(*args: Any, **kwargs: Any) -> Any:
            self.budget.step()
            return self._make(function(*args, **kwargs))

        return charged

    def _tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """As transformers has it: no HTML escapes, non-ASCII as it is."""
        if indent is not None and not 0 <= indent <= 16:
            raise TemplateRefused("an indent over 16")
        if separators is not None and any(len(part) > 8 for part in separators):
            raise TemplateRefused("separators over 8 characters")
        self.checked(value)
        encoder = json.JSONEncoder(
            ensure_ascii=bool(ensure_ascii),
            indent=indent,
            separators=separators,
            sort_keys=bool(sort_keys),
        )
        return self.concat(encoder.iterencode(value))  # piece by piece: an indent can grow it much

    def _join(self, value: Any, d: str = "", attribute: str | int | None = None) -> str:
        parts: list[str] = []
        size = 0
        for item in value:
            part = self._text(item if attribute is None else self.getitem(item, attribute))
            size += len(part) + len(d)
            if size > self.budget.text + len(d):
                raise TemplateRefused(f"a text over {self.budget.text} characters")
            parts.append(part)
        self.budget.charge(max(0, size - len(d)))
        return self._text(d).join(parts)

    def _replace(self, value: Any, old: str, new: str, count: int | None = None) -> str:
        text, old, new = self._text(value), str(old), str(new)
        self.budget.charge(len(text) + text.count(old) * max(0, len(new) - len(old)))
        return text.replace(old, new, -1 if count is None else count)

    def _indent(
        self, s: str, width: int | str = 4, first: bool = False, blank: bool = False
    ) -> str:
        margin = width if isinstance(width, str) else " " * min(max(width, 0), 65)
        if len(margin) > 64:
            raise TemplateRefused("an indent over 64")
        lines = self._text(s).split("\n")
        self.budget.charge(sum(map(len, lines)) + len(lines) * (1 + len(margin)))
        return "\n".join(
            (margin if (line or blank) and (i or first) else "") + line
            for i, line in enumerate(lines)
        )


def _complain(message: str) -> NoReturn:
    raise TemplateComplaint(str(message)[:1000])


def _strftime_now(format: str) -> str:
    if len(format) > 200 or not _STRFTIME.fullmatch(format):
        raise TemplateRefused("a date format that is not plain")
    return datetime.datetime.now().strftime(format)


def _int(value: Any, default: int = 0, base: int = 10) -> int:
    try:
        if isinstance(value, str):
            return int(value, base) if len(value) <= 100 else default
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return default


def _round(value: float, precision: int = 0, method: str = "common") -> float:
    if not -30 <= precision <= 30:
        raise TemplateRefused("a precision over 30")
    return do_round(value, precision, cast("Any", method))


@contextmanager
def _traced(budget: _Budget) -> Iterator[None]:
    """Count each line of the template and each Python call made for it, on this thread."""

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        budget.step()
        code: CodeType = frame.f_code
        return trace if code.co_filename == "<template>" else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)
