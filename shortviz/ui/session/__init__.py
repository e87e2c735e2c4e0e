"""What a visit remembers, and the address that brings it back."""
