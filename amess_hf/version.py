"""The package's version, in one place: setup.cfg and `amess_hf.__version__` read it here."""

__version__ = "0.2.0.dev0"
