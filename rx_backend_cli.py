"""The entry point of the command `rx-backend`, where Ctrl-C is silent from the first import on."""

__all__ = ("main",)


def main() -> int:
    """Run the command; see `rx_backend.cli`. Return its exit code."""
    try:
        from rx_backend.cli import main as run  # noqa: PLC0415  # the import is what may be interrupted

        return run()
    except KeyboardInterrupt:
        return 130
