"""Programs outside of this repository build against the installed library, and run.

Needs an installed library: SELM_TEST_PREFIX=/where/it/is (`cmake --install build --prefix ...`).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from support.bundled import DEFAULT, STUDENT

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "cpp" / "examples"
PREFIX = os.environ.get("SELM_TEST_PREFIX")
STRICT = ("-Wall", "-Wextra", "-Wconversion", "-Werror", "-O1")
MOST_BYTES = 1_500_000  # of the shared library, stripped
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}

pytestmark = pytest.mark.skipif(
    PREFIX is None, reason="SELM_TEST_PREFIX names no installed library (.ci/run does)"
)

CMAKE = """
cmake_minimum_required(VERSION 3.21)
project(outside LANGUAGES C CXX)
set(CMAKE_C_STANDARD 11)
set(CMAKE_CXX_STANDARD 17)
set(CMAKE_CXX_EXTENSIONS OFF)
add_compile_options(-Wall -Wextra -Wconversion -Werror)
find_package(selm REQUIRED)
foreach(source bare.c chat.c schema.cpp server.c)
  get_filename_component(name ${source} NAME_WE)
  add_executable(${name} ${source})
  target_link_libraries(${name} PRIVATE selm::selm)
endforeach()
"""


@pytest.fixture(scope="module")
def prefix() -> Path:
    assert PREFIX is not None
    return Path(PREFIX).absolute()


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder with the examples and nothing else of the project."""
    for example in EXAMPLES.iterdir():
        shutil.copy(example, tmp_path)
    return tmp_path


def run(*command: str | Path, cwd: Path | None = None, **more: str) -> str:
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, timeout=300,
        env={**os.environ, **more}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check_programs(folder: Path, **more: str) -> None:
    assert run(folder / "chat", DEFAULT, "What is 17 + 25?", **more).strip()
    told = subprocess.run(
        [folder / "bare", STUDENT, "What is 17 + 25?"], capture_output=True, text=True, timeout=300,
        env={**os.environ, **more}, check=False,
    )  # fmt: skip
    assert told.returncode == 0 and told.stdout.strip(), told.stderr
    assert "session: context 256" in told.stderr and "million parameters" in told.stderr
    reply = run(folder / "schema", DEFAULT, json.dumps(SCHEMA), "Give me a number", **more)
    assert set(json.loads(reply)) == {"n"}
    said = run(folder / "server", DEFAULT, "What is 17 + 25?", "Hello, who are you?", **more)
    one = run(folder / "server", DEFAULT, "Hello, who are you?", "What is 17 + 25?", **more)
    # Each conversation is its own: which thread it is on, and what the other says, changes nothing.
    assert sorted(said.splitlines()) == sorted(one.splitlines()) and "42" in said


@pytest.mark.parametrize("shared", [False, True])
def test_find_package(prefix: Path, outside: Path, shared: bool) -> None:
    (outside / "CMakeLists.txt").write_text(CMAKE)
    build = outside / "build"
    kind = f"-DBUILD_SHARED_LIBS={'ON' if shared else 'OFF'}"
    run("cmake", "-S", outside, "-B", build, f"-DCMAKE_PREFIX_PATH={prefix}", kind)
    run("cmake", "--build", build)
    needed = run("readelf", "-d", build / "chat")
    assert ("libselm.so" in needed) is shared
    check_programs(build)


@pytest.mark.skipif(shutil.which("pkg-config") is None, reason="there is no pkg-config here")
@pytest.mark.parametrize("shared", [False, True])
def test_pkg_config(prefix: Path, outside: Path, shared: bool) -> None:
    where = str(next(prefix.glob("lib*/pkgconfig")))
    library = next(prefix.glob("lib*"))
    how = () if shared else ("--static",)
    flags = run("pkg-config", "--cflags", "--libs", *how, "selm", PKG_CONFIG_PATH=where).split()
    if not shared:  # the linker would take the shared one, which lies beside it
        flags = [str(library / "libselm.a") if flag == "-lselm" else flag for flag in flags]
    for name, compiler, standard in (
        ("bare.c", "cc", "-std=c11"),
        ("chat.c", "cc", "-std=c11"),
        ("server.c", "cc", "-std=c11"),
        ("schema.cpp", "c++", "-std=c++17"),
    ):
        posix = ("-D_GNU_SOURCE", "-pthread") if name == "server.c" else ()
        run(compiler, standard, *STRICT, *posix, outside / name, *flags,
            "-o", outside / name.split(".")[0])  # fmt: skip
    check_programs(outside, LD_LIBRARY_PATH=str(library))


def test_the_header_is_c11_and_cpp17(prefix: Path, tmp_path: Path) -> None:
    include = f"-I{prefix / 'include'}"
    (tmp_path / "a.c").write_text("#include <selm/selm.h>\nint main(void) { return 0; }\n")
    (tmp_path / "a.cpp").write_text("#include <selm/selm.hpp>\nint main() { return 0; }\n")
    run("cc", "-std=c11", "-pedantic", *STRICT, include, "-c", tmp_path / "a.c", cwd=tmp_path)
    run("c++", "-std=c++17", "-pedantic", *STRICT, "-fno-exceptions", "-fno-rtti", include, "-c",
        tmp_path / "a.cpp", cwd=tmp_path)  # fmt: skip


def test_what_the_shared_library_shows(prefix: Path, tmp_path: Path) -> None:
    library = next(prefix.glob("lib*/libselm.so")).resolve()
    table = run("nm", "-D", "--defined-only", library).splitlines()
    shown = {line.split()[-1] for line in table if " A " not in line}
    header = (prefix / "include" / "selm" / "selm.h").read_text(encoding="utf-8")
    declared = set(re.findall(r"SELM_API[^;(]*?(selm_\w+)\(", header))
    assert shown == declared and len(declared) <= 60
    stripped = tmp_path / "libselm.so"
    run("strip", "-o", stripped, library)
    assert stripped.stat().st_size <= MOST_BYTES
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", run("readelf", "-d", library))
    usual = {"libstdc++.so.6", "libm.so.6", "libgcc_s.so.1", "libc.so.6", "libpthread.so.0"}
    assert {name for name in needed if not name.startswith("ld-linux")} <= usual


def test_only_what_programs_need_is_installed(prefix: Path) -> None:
    files = {str(path.relative_to(prefix)) for path in prefix.rglob("*") if path.is_file()}
    files = {re.sub(r"^lib\w*/", "lib/", name) for name in files}
    unexpected = [
        name for name in files
        if not re.fullmatch(
            r"include/selm/selm\.(h|hpp)|lib/libselm\.(a|so[\d.]*)|lib/pkgconfig/selm\.pc"
            r"|lib/cmake/selm/selm[\w-]*\.cmake", name,
        )
    ]  # fmt: skip
    assert unexpected == []
