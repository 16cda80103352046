"""A method a file: what it hides, what it encodes, what it minimises."""
