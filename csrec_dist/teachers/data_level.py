"""Data-level teachers (Alg. 2): replicas that see sub-samples of their own."""

from csrec_dist.teachers.strategy import Plan, Strategy, replicas


def data_level(plan: Plan) -> Strategy:
    """Members trained on the share p of the rows, each from a seed of its own, which its sample follows."""
    return replicas(plan, plan.sample)
