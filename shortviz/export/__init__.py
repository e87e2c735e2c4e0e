"""Write a checkpoint, and prove in a fresh process that it is the model that was meant."""
