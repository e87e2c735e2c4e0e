"""The course: its data, questions and pictures."""
