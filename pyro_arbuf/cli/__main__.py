"""`python -m pyro_arbuf.cli`, which launchers of several processes start."""

from pyro_arbuf.cli.commands import main

main()
