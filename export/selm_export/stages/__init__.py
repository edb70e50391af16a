"""One module per stage of the pipeline: ``Settings``, the keys a recipe may give it, ``run``, and
``PARALLEL`` where every process of torchrun takes part."""

NAMES = (
    "data", "base", "linearize", "exits", "expert", "delta", "route", "distill", "prune",
    "factorize", "quantize", "gguf", "onnx", "report",
)  # fmt: skip
