"""The screens, one module each, and what is around them."""
