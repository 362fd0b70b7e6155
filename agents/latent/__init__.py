"""Agents that learn a latent world model from rewards: networks, losses, planners, acting, and the one update of all."""
