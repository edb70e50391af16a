"""From source files to conversations, tokens and packed rows."""
