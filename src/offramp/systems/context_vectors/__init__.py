"""The context-vector model: a recurrent state per token without attention, trained apart from what reads
it."""
