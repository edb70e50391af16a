"""The engines that can run a model file, by name. The first that can is the default."""

from __future__ import annotations

from selm_edge.backends.base import Backend
from selm_edge.errors import SelmError

_added: dict[str, Backend] = {}


def names() -> list[str]:
    """The backends known here, available or not, best first."""
    return ["native", "llama-cpp", "onnx", *_added]


def get(name: str) -> Backend:
    """A backend by name; SelmError where there is none of that name."""
    if name in _added:
        return _added[name]
    if name == "native":
        from selm_edge.backends.native import NativeBackend

        return NativeBackend()
    if name == "llama-cpp":
        from selm_edge.backends.llama_cpp import LlamaCppBackend

        return LlamaCppBackend()
    if name == "onnx":
        from selm_edge.backends.onnx import OnnxBackend

        return OnnxBackend()
    raise SelmError(f"no backend called {name!r}; there are: {', '.join(names())}")


def name_for(path: str) -> str:
    """The backend that is meant where none is named: folders are ONNX models, files GGUF."""
    from selm_edge.backends.onnx_folder import is_folder

    return "onnx" if is_folder(path) else "native"


def register(backend: Backend) -> None:
    """Add a backend of one's own (or a test's)."""
    _added[backend.name] = backend
