"""Templates that want to run code, hang, or eat the memory: none may, and the chat goes on.

Each runs in a process with limited memory and time, so that a hole fails a test and not the run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from support.chat_templates import CHATML, CONVERSATION

from selm_edge._sandbox import BoundedEnvironment
from selm_edge.templates import ChatTemplate

RENDER = """
import json, sys
if sys.platform.startswith("linux"):
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
from selm_edge.templates import ChatTemplate
source, messages = json.loads(sys.stdin.read())
rendered = ChatTemplate(source).render(messages)
json.dump([rendered.text, [[n.code, n.message] for n in rendered.notices]], sys.stdout)
"""

BIG = 10**9
BOMBS = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}"
    "{% endfor %}{% endfor %}",
    "long range": f"{{% for a in range({BIG}) %}}x{{% endfor %}}",
    "output": "{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
    "string times": f"{{{{ 'x' * {BIG} }}}}",
    "times string": f"{{{{ {BIG} * 'x' }}}}",
    "list times": f"{{{{ [0] * {BIG} }}}}",
    "power": "{{ 9 ** 9 ** 9 }}",
    "huge numbers": "{% set ns = namespace(x=99) %}{% for i in range(60) %}"
    "{% set ns.x = ns.x * ns.x %}{% endfor %}{{ ns.x }}",
    "concat doubling": "{% set ns = namespace(x='ab') %}{% for i in range(60) %}"
    "{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x | length }}",
    "plus doubling": "{% set ns = namespace(x='ab') %}{% for i in range(60) %}"
    "{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x | length }}",
    "block doubling": "{% set ns = namespace(x='ab') %}{% for i in range(60) %}"
    "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}{{ ns.x | length }}",
    "macro doubling": "{% macro m(n) %}{% if n > 0 %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}x"
    "{% endmacro %}{{ m(60) }}",
    "endless macro": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "replace": "{{ ('a' * 9999) | replace('a', 'b' * 9999) }}",
    "replace method": "{{ ('a' * 9999).replace('a', 'b' * 9999) }}",
    "join": "{{ range(9999) | join('x' * 9999) }}",
    "join method": "{{ ('x' * 9999).join(['a'] * 9999) }}",
    "center": f"{{{{ 'x' | center({BIG}) }}}}",
    "ljust": f"{{{{ 'x'.ljust({BIG}) }}}}",
    "zfill": f"{{{{ 'x'.zfill({BIG}) }}}}",
    "expandtabs": f"{{{{ '\t'.expandtabs({BIG}) }}}}",
    "percent width": f"{{{{ '%{BIG}d' % 1 }}}}",
    "percent star": f"{{{{ '%*d' % ({BIG}, 1) }}}}",
    "format width": f"{{{{ '{{:>{BIG}}}'.format(1) }}}}",
    "format filter": f"{{{{ '%{BIG}d' | format(1) }}}}",
    "indent": f"{{{{ ('\n' * 999) | indent({BIG}) }}}}",
    "indent text": "{{ ('\n' * 9999) | indent('x' * 9999) }}",
    "tojson indent": f"{{{{ [[[1]]] | tojson(indent={BIG}) }}}}",
    "tojson separators": "{{ range(9999) | list | tojson(separators=('x' * 99999, ':')) }}",
    "round": f"{{{{ 5 | round({BIG}, 'ceil') }}}}",
    "round down": f"{{{{ 5 | round(-{BIG}) }}}}",
    "deep tojson indent": "{% set ns = namespace(x=[1] * 400000) %}{% for i in range(400) %}"
    "{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | tojson(indent=16) }}",
    "strftime": f"{{{{ strftime_now('%{BIG}Y') }}}}",
    "lipsum": f"{{{{ lipsum(n={BIG}) }}}}",
    "nested lists": "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}"
    "{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "nested dicts": "{% set ns = namespace(x=1) %}{% for i in range(60) %}"
    "{% set ns.x = {'a': ns.x, 'b': ns.x} %}{% endfor %}{{ ns.x | tojson }}",
    "nested views": "{% set ns = namespace(x={}.items()) %}{% for i in range(60) %}"
    "{% set ns.x = {1: ns.x, 2: ns.x}.items() %}{% endfor %}{{ ns.x }}",
    "nested tuples as keys": "{% set ns = namespace(x=(1,)) %}{% for i in range(60) %}"
    "{% set ns.x = (ns.x, ns.x) %}{% endfor %}{{ {ns.x: 1} }}",
    "nested namespaces": "{% set ns = namespace(x=1) %}{% for i in range(60) %}"
    "{% set n2 = namespace(a=ns.x, b=ns.x) %}{% set ns.x = n2 %}{% endfor %}{{ ns.x }}",
    "comparing nests": "{% set a = namespace(x=[1]) %}{% set b = namespace(x=[1]) %}"
    "{% for i in range(60) %}{% set a.x = [a.x, a.x] %}{% set b.x = [b.x, b.x] %}{% endfor %}"
    "{{ a.x == b.x }}",
    "list of long texts": "{{ ['x' * 99999] * 9999 }}",
    "many texts": "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}"
    "{% set ns.x = ns.x + ['x' * 99999 ~ i] %}{% endfor %}{{ ns.x | length }}",
    "many slices": "{% set x = 'x' * 999999 %}" + "{% set y = x[1:] %}" * 3000 + "{{ 1 }}",
    "many methods": "{% set x = 'x' * 999999 %}{% for i in range(99999) %}{% set y = x.upper() %}"
    "{% endfor %}",
    "splitting": "{% set x = 'x ' * 400000 %}{% for i in range(9999) %}{% set y = x.split() %}"
    "{% endfor %}",
    "sum of lists": "{{ ([[1] * 999] * 999) | sum(start=[]) | length }}{% for i in range(99999) %}"
    "{% set y = ([[1] * 999] * 99) | sum(start=[]) %}{% endfor %}",
    "deep brackets": "{{ " + "[" * 20000 + "]" * 20000 + " }}",
    "deep ifs": "{% if 1 %}" * 5000 + "{% endif %}" * 5000,
    "long sum": "{{ " + "1+" * 30000 + "1 }}",
    "too long": "x" * 200_000,
    "digits": "{{ " + "9" * 100_000 + " }}",
    "recursive loop": "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "deep list": "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}"
    "{% endfor %}{{ ns.x }}",
}

ESCAPES = {
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "class by attr": "{{ ''|attr('__class__') }}",
    "class by map": "{{ ['']|map(attribute='__class__')|list }}",
    "class by item": "{{ ''['__class__'] }}",
    "globals of a function": "{{ raise_exception.__globals__ }}",
    "globals of a macro": "{% macro m() %}{% endmacro %}{{ m.__init__.__globals__ }}",
    "self": "{{ self.__init__.__globals__ }}",
    "self blocks": "{{ self._TemplateReference__context }}",
    "environment": "{{ self._TemplateReference__context.environment }}",
    "cycler": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "joiner": "{{ joiner.__init__.__globals__ }}",
    "namespace": "{{ namespace.__init__.__globals__ }}",
    "lipsum": "{{ lipsum.__globals__['os'] }}",
    "format escape": "{{ '{0.__class__}'.format('') }}",
    "format map": "{{ '{a.__class__}'.format_map({'a': ''}) }}",
    "generator frame": "{{ (messages|map('upper')).gi_frame }}",
    "import": "{% import 'os' as os %}{{ os }}",
    "include": "{% include '/etc/passwd' %}",
    "extends": "{% extends '/etc/passwd' %}",
    "call a class": "{{ ''.__class__()|length }}",
    "call a value": "{{ messages[0]['content'].encode()|list }}",
    "loop internals": "{% for i in [1] %}{{ loop.__init__.__globals__ }}{% endfor %}",
    "range type": "{{ range.__class__ }}",
    "dict mro": "{{ dict.mro() }}",
    "dict fromkeys": "{{ dict.fromkeys('abc') }}",
    "change the messages": "{{ messages.append(1) }}",
    "change a message": "{{ messages[0].update({'content': 'x'}) }}",
}


def render(source: str) -> tuple[str, list[list[str]]]:
    done = subprocess.run(
        [sys.executable, "-c", RENDER],
        input=json.dumps([source, CONVERSATION]),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    text, notices = json.loads(done.stdout)
    return text, notices


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_end_in_the_fallback(name: str) -> None:
    text, notices = render(BOMBS[name])
    assert text == CHATML.expected
    assert [code for code, _ in notices] == ["template-failed"]
    assert len(notices[0][1]) < 500


@pytest.mark.parametrize("name", ESCAPES)
def test_escapes_get_nothing(name: str) -> None:
    rendered = ChatTemplate(ESCAPES[name]).render(CONVERSATION)
    refused = [notice.code for notice in rendered.notices] == ["template-failed"]
    assert (refused and rendered.text == CHATML.expected) or rendered.text in ("", "[Undefined]")


def test_what_used_up_its_time_is_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    run = BoundedEnvironment.run

    def counted(self: BoundedEnvironment, *rest: Any) -> str:
        runs.append(1)
        return run(self, *rest)

    monkeypatch.setattr(BoundedEnvironment, "run", counted)
    loop = "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}"
    template = ChatTemplate("{% if messages|length > 1 %}" + loop + "{% endif %}ok")
    first = template.render(CONVERSATION)
    assert template.render(CONVERSATION) == first and len(runs) == 1
    assert first.notices[0].code == "template-failed" and first.text == CHATML.expected
    assert template.render([{"role": "user", "content": "x"}]).text == "ok"  # less may work


def test_its_own_processor_time_counts_and_not_the_machines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("time.monotonic", iter(range(0, 10**6, 100)).__next__)
    rendered = ChatTemplate(CHATML.source).render(CONVERSATION)
    assert rendered.notices == () and rendered.text == CHATML.expected


def test_a_number_of_a_million_digits_is_no_number() -> None:
    assert ChatTemplate("{{ ('9' * 900000) | int }}").render(CONVERSATION).text == "0"


def test_messages_are_not_changed() -> None:
    messages = [{"role": "user", "content": "x"}]
    ChatTemplate("{% for m in messages %}{% set m = 1 %}{% endfor %}").render(messages)
    assert messages == [{"role": "user", "content": "x"}]


def test_large_inputs_are_fine() -> None:
    messages = [{"role": "user", "content": "word " * 400_000}]
    rendered = ChatTemplate(CHATML.source).render(messages)
    assert rendered.notices == () and len(rendered.text) > 2_000_000


def test_a_debugger_or_coverage_keeps_its_trace_function() -> None:
    seen: list[str] = []

    def trace(frame: object, event: str, arg: object) -> None:
        seen.append(event)

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        ChatTemplate(CHATML.source).render(CONVERSATION)
        during = sys.gettrace()
    finally:
        sys.settrace(before)
    assert during is trace
