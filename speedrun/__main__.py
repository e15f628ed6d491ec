"""`python -m speedrun`."""

from speedrun.cli.main import main

main()
