"""`python -m alphakernels`."""

from alphakernels.cli import main

main()
