"""A deterministic simulator around the manager core: virtual clock, simulated workers, seeded faults.

Shipped with the product: the same runs answer "what would 4,500 workers do" on one machine.
"""
