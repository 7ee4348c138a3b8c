"""``python -m learnreg``, and the command ``learnreg``."""

import sys

__all__ = ["main"]


def main() -> None:
    """The command line; an interrupt while it is imported ends it as one later on does."""
    try:
        from learnreg.commands import cli

        cli.main()
    except KeyboardInterrupt:
        sys.stderr.write("learnreg: interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
