"""Model-level teachers (Alg. 1): replicas that differ in their seeds only."""

from csrec_dist.teachers.strategy import Plan, Strategy, replicas


def model_level(plan: Plan) -> Strategy:
    """Members trained on all rows, each from a seed of its own."""
    return replicas(plan, 1.0)
