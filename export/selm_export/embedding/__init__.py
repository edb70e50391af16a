"""A small static embedder for the memory: distilled, trained on questions and answers, written."""
