"""Model-level teachers (Alg. 1): m replicas that differ in their seeds only; their logits are averaged."""

from csrec_dist.models import ModelConfig
from csrec_dist.teachers.strategy import Member, Strategy, member_seed


def model_level(num: int, model: ModelConfig, seed: int) -> Strategy:
    """`num` members of one model, each trained on all rows from a seed of its own."""
    return Strategy(tuple(Member(f"teacher-{k}", member_seed(seed, k), model) for k in range(num)))
