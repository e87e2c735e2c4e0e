"""From a text's name to token rows, windows and questions."""
