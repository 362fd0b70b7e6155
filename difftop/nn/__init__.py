"""Networks and their hand-written pullbacks."""
