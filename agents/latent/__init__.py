"""Agents that learn a latent world model from rewards: its networks and losses, its planners, acting, and the one update of all."""
