"""The log files that a run of a manager leaves, in the published formats: writers and readers."""
