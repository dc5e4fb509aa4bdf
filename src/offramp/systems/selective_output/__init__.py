"""A language model with a gate that may withhold its output and think one more step instead."""
