"""The commands that people type, one module for each, imported only when it is typed.

Never decides anything about a rollout: a person's word goes into the state, and the daemon answers it.
"""
