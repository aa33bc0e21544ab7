"""Looks for what keeps releases from being looked after, and says what to do. Reads only; never repairs anything.

`findings` says what a check is and runs a list of them, `cluster` and `files` are the two lists. A further check is a
function that yields findings, and an entry in a list.
"""
