"""Settings that are right by themselves and do not go together, said in one sentence each."""

from csrec_dist.config.schema import Config, DistributedOptions
from csrec_dist.labels.combining import combining_problem


def impossible(config: Config) -> list[str]:
    """What in a configuration excludes something else in it."""
    problems = []
    teachers, labels = config.teachers, config.labels
    has_members = config.num_members > 0
    if teachers.pretrained and not has_members:
        problems.append(f"teachers.pretrained: method {config.method} has no members; leave it out.")
    if teachers.pretrained and len(teachers.pretrained) != teachers.num:
        problems.append(
            f"teachers.num: is {teachers.num}, but {len(teachers.pretrained)} pretrained members are given."
        )
    if teachers.pretrained and teachers.model is not None:
        problems.append("teachers.model: pretrained members bring their own model; leave it out.")
    if teachers.trust_item_order and not teachers.pretrained:
        problems.append("teachers.trust_item_order: there are no pretrained members to trust; leave it out.")
    if isinstance(teachers.model, list) and len(teachers.model) != config.num_members:
        problems.append(f"teachers.model: lists {len(teachers.model)} models for {config.num_members} members.")
    if has_members and not teachers.pretrained and teachers.num != config.num_members:
        problems.append(f"teachers.num: method {config.method} has {config.num_members} members; leave it out.")
    if config.baseline and config.method == "base":
        problems.append("baseline: method base already is the baseline; leave it out.")
    if labels.form != "factored" and not has_members:
        problems.append(f"labels.form: method {config.method} keeps no labels; leave it out.")
    if labels.form == "topk" and config.training.kl != "forward":
        problems.append(
            f"labels.form: topk keeps some items of a row, and training.kl {config.training.kl} is infinite on the "
            "others; choose training.kl forward, or labels.form factored."
        )
    if config.distributed.catalog_parallel > 1:
        problems += _impossible_in_slices(config)
    contrasted = [model.name for model in (config.model, *config.teacher_models) if hasattr(model, "contrast_weight")]
    if contrasted and config.training.accumulate > 1:
        problems.append(
            f"training.accumulate: {contrasted[0]} contrasts the windows of a whole batch, which micro-batches would "
            "cut apart; set it to 1."
        )
    problems += impossible_engine(config.distributed)
    if not problems and has_members:
        problems += _impossible_combination(config)
    return problems


def _impossible_in_slices(config: Config) -> list[str]:
    problems = []
    if config.labels.form == "dense":
        problems.append(
            "labels.form: dense needs whole rows of logits, which ranks that share a catalog do not have; choose "
            "factored or topk, or distributed.catalog_parallel 1."
        )
    if config.labels.weights == "fitted":
        problems.append(
            "labels.weights: fitted needs whole item tables, which ranks that share a catalog do not have; give the "
            "weights, or choose distributed.catalog_parallel 1."
        )
    return problems


def impossible_engine(options: DistributedOptions) -> list[str]:
    """What does not go with the engine."""
    problems = []
    engine, catalog_parallel = options.engine, int(options.catalog_parallel)
    if engine == "deepspeed" and options.deepspeed is None:
        problems.append(
            "distributed.deepspeed: engine deepspeed needs it, for example configs/deepspeed/zero2.json, or the "
            "launcher's --deepspeed_config_file."
        )
    if engine != "deepspeed" and options.deepspeed is not None:
        problems.append(
            f"distributed.deepspeed: engine {engine} does not read it; leave it out, or set distributed.engine to "
            "deepspeed."
        )
    if engine != "ddp" and catalog_parallel > 1:
        problems.append(
            f"distributed.catalog_parallel: engine {engine} shards whole tables itself and cannot train slices of "
            f"them; set engine ddp with {catalog_parallel}, or catalog_parallel 1 with engine {engine}."
        )
    return problems


def _impossible_combination(config: Config) -> list[str]:
    labels = config.labels
    if labels.weights == "fitted":
        fits = labels.combine == "weighted"
        return [] if fits else [f"labels.weights: fitted goes with combine weighted, not {labels.combine}."]
    form = "factored" if labels.form == "auto" else labels.form
    problem = combining_problem(labels.combine, labels.weights, len(config.labelling_names), form)
    return [f"labels: {problem}"] if problem else []
