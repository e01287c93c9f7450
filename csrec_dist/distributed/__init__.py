"""Processes, groups and collectives: the only folder that imports accelerate, deepspeed or torch.distributed."""
