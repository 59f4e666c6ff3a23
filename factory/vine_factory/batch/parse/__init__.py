"""Reading what batch systems write: pure functions from text to records, tried on recorded outputs."""
