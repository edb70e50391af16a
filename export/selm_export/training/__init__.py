"""One loop for everything that learns: what is learned is a task, how fast its settings."""
