"""One module per stage of the pipeline: ``Settings``, the keys a recipe may give it, ``run``, and
``PARALLEL`` where every process of torchrun takes part."""

STAGES = {
    "data": "Source files become text to train on, and a tokenizer.",
    "base": "A model learns language, or one from elsewhere is taken.",
    "average": "One model of the weights between several.",
    "linearize": "Softmax attention becomes performer + window.",
    "exits": "A model learns to speak early, so that it drafts for itself.",
    "expert": "A base goes on with one field of knowledge.",
    "delta": "Experts become low-rank deltas of their base, in one model.",
    "route": "Scalar heads learn which expert should speak.",
    "distill": "A student learns to say what a teacher says.",
    "prune": "Heads, feed-forward, width or layers that matter least go.",
    "factorize": "Matrices become products of two smaller ones.",
    "quantize": "Block types are chosen and a GGUF file is written.",
    "gguf": "A GGUF file, every matrix of one type.",
    "onnx": "An ONNX model, for other runtimes.",
    "embedder": "A sentence embedder becomes a static one, for the memory.",
    "publish": "A finished file goes into the package, with its card.",
    "report": "What every stage gained and cost, as a page.",
}
