"""Smaller models without a gradient: pruning, low rank, experts as deltas of one base."""
