"""Looking back as if it were now: windows of the past, stored rollouts and stable pods in the canary's place.

Every judgement is made by the code that makes the live ones (`canaryd.measure`, `canaryd.judge`, `canaryd.plan`); here
is only what puts it into the past. Never saves, routes or tells anything, and never asks for the time.
"""
