"""One module per stage of the pipeline: ``Settings``, the keys a recipe may give it, and ``run``."""
