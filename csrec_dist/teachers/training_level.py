"""Training-level teachers (Alg. 3): a main teacher, regularised by a side teacher, makes the labels alone."""

from csrec_dist.teachers.strategy import Member, Plan, Strategy, member_seed


def training_level(plan: Plan) -> Strategy:
    """The side teacher g₂ on the share p of the rows, then the main teacher g₁ on all rows, leaning on g₂."""
    side_model, main_model = plan.models
    side = Member("side", member_seed(plan.seed, 0), side_model, plan.sample)
    main = Member("main", member_seed(plan.seed, 1), main_model, leans_on=side.name)
    return Strategy((side, main), (main.name,))
