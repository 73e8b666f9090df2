"""`python -m stair` is the `stair` command."""

from stair.cli import main

main()
