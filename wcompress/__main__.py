"""`python -m wcompress`."""

from wcompress.cli import main

main()
