"""``python -m synther_buffers.commands``: the same as ``synther-buffers``."""

from .app import main

if __name__ == "__main__":
    main()
