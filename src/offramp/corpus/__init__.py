"""From text to token windows: sources -> documents -> split -> tokenizer -> streams on disk."""
