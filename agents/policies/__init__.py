"""Policies that learn from demonstrations: chunks of actions and their limits, what they observe, and how they are trained."""
