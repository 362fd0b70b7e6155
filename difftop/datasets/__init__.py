"""`mode=data` and `mode=convert`: what people have, looked at and turned into what can be trained on."""

from difftop.datasets.convert import convert_command
from difftop.datasets.look import data_command

__all__ = ["convert_command", "data_command"]
