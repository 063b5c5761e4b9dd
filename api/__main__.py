"""``python -m planish``: the ``planish`` command."""

from planish.cli import main

main()
