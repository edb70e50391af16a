"""What was said about replies becomes an adapter: examples, losses, the gate."""
