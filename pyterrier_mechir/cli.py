"""The entry point of the command line; :mod:`~pyterrier_mechir.commands.cli` has all of it."""

from pyterrier_mechir.commands.cli import main as main
