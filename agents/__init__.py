"""Policies and their update rules. Knows difftop, never envs."""
