"""Plain values shared by manager, worker, simulator and logs: no I/O, no policy."""
