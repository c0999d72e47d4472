"""The `puna` command."""

__all__ = ["main"]


def main() -> None:
    """Run the command that the process's arguments ask for and exit with its status."""
    from .app import run_command  # here, so that `import puna.cli` costs nothing

    run_command()
