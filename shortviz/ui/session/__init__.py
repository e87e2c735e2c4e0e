"""What a visit remembers, and its address."""
