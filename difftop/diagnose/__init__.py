"""Is a latent world model worth planning with? Measures of a trained agent's model, values and planner, and what they mean."""

from difftop.diagnose.measures import Diagnosis, LatentView, Played, diagnose
from difftop.diagnose.report import advice, draw, table

__all__ = ["Diagnosis", "LatentView", "Played", "advice", "diagnose", "draw", "table"]
