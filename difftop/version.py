"""The version, in a file of its own so that nothing else has to be imported for it."""

__version__ = "0.1.0"
