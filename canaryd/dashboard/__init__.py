"""The dashboard: pages for people, live, read-only unless the operator lets people act. Off unless configured.

It shows what decision records say and judges nothing; what people do here goes the way of every override, through the
store. Nothing is loaded from elsewhere, and nothing of this package is loaded where no dashboard is configured.
"""
