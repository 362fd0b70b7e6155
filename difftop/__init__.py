"""difftop: policies that plan, by an optimizer inside the network that is trained end to end."""

__version__ = "0.1.0"
