"""From float matrices to a small file: block types, importance of columns, and which tensor gets
which type."""
