"""From records to answers: what to remove, how sure that is, how many rows it needs. No torch."""
