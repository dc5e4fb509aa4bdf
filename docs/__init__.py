"""README.md and docs/*.md, written from templates so that every figure comes from a file."""
