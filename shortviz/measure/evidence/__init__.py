"""What a cut model can still do: generation probes, tasks of lm_eval, speed beside the uncut model."""
