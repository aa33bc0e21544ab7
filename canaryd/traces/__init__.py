"""What traces say about a decision: which ones to look at, what only the canary does, and where its time goes.

Evidence for people, gathered after a decision and never an input to one. What is counted here was sampled, and may have
been truncated: numbers come with their n, and a difference is shown only when chance is a poor explanation for it.
"""
