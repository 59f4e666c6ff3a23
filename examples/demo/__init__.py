"""The demo behind ``make demo``: a map-reduce analysis of real CMS events on workers that a factory starts."""
