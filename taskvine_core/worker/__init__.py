"""The worker: runs tasks, keeps objects on its own disk, passes them to other workers.

``core`` decides (pure), ``runner`` does; everything else serves one of the two.
"""
