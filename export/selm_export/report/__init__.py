"""Measuring models, and telling what was found."""
