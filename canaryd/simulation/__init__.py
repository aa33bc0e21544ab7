"""Traffic drawn from a seed and the product's own tests on it: what is claimed of them can be checked by anyone."""
