"""The answer of every verb as people see it."""
