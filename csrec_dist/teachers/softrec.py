"""SoftRec (Cheng et al., 2021), item-popularity based: no member; the popularity of the targets makes the labels."""

from csrec_dist.teachers.strategy import Plan, Strategy


def softrec(plan: Plan) -> Strategy:
    """No members."""
    return Strategy((), ())
