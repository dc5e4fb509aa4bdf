"""Lagged cache training: a recurrence over tokens, trained in parallel from the states of an earlier pass."""
