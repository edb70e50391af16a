"""The SELM model in torch: attention that remembers in constant memory, gates, exits, experts."""
