"""Replay buffers and demonstration files."""
