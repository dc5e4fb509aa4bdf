"""What anybody with a GPU can check in five minutes: ``make gpu-check``, or ``python -m benchmarks.gpu``."""
