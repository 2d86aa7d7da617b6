"""``python -m hoyer_export``: the same as the command ``hoyer-export``."""

from hoyer_export.cli import main

if __name__ == "__main__":
    main()
