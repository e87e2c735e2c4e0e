"""GGUF files: what their headers say, their de-quantised copies, and how one is written from another."""
