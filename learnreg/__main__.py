"""``python -m learnreg``."""

from learnreg.commands.cli import main

if __name__ == "__main__":
    main()
