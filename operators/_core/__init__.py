"""The machinery: what an operator is, and how a list of them becomes one pulled stream."""
