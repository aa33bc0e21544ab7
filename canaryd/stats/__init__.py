"""The tests, one file each: arrays over rows in, log e-values out. Pure numpy, no loop over canaries.

A *row* is one kind of bad event of one canary: "failed" or "slower than 250 ms". Log means natural logarithm.
"""
