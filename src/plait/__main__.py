"""``python -m plait``: the same as the command ``plait``."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
