"""The training side of SELM Edge: recipes that turn data into a model file."""
