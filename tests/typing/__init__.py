"""What type checkers say of the library; `make lint` asks pyright and mypy, both strict."""
