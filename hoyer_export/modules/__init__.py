"""Modules of a slim network whose code insists on dense widths: equal ones that follow their tensors, and a
narrowed input."""
