"""The course of the Learn page: its data, questions and pictures."""
