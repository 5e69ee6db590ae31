"""From what is switched on to a guard: concepts by name, direction files that can be trusted, selections."""
