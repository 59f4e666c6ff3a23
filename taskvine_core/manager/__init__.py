"""The manager: a pure core that decides, a runner with all its I/O, and the interface that programs use."""
