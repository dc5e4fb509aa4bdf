"""Models that read a compressive memory of earlier windows of the same document (Infini-attention)."""
