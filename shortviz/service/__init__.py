"""What the app and the command line both do: jobs, loaded models, runs, and what a hosted installation allows."""
