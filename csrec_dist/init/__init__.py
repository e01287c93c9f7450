"""`csrec-dist init LOG`: looks at a raw log, decides or asks how to read and cut it, and writes a commented config."""

from csrec_dist.init.command import init_from_log

__all__ = ["init_from_log"]
