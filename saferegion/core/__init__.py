"""The mathematics of a safe region: pure, typed, torch only. This room imports no other."""
