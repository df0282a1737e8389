"""The package's version, in one place: setup.cfg and `amess_hf.__version__` read it here."""

__version__ = "0.1.0.dev0"
