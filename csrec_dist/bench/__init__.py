"""The throughput benchmark `csrec-dist bench`: a run's stages, timed on the machines at hand, beside their limits."""
