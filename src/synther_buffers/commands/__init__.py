"""The command line: a file for each command, what they share in `parts` and `names`, all of them together in `app`.

No module here imports PyTorch, NumPy or anything that does when it is loaded: ``--help`` and the completion of a shell
answer at once. The functions of the commands import what they need.
"""

try:
    import typer  # noqa: F401  (only to say what is missing)
except ImportError as error:
    raise ImportError('the command line needs typer: pip install "synther-buffers[offline]"') from error
