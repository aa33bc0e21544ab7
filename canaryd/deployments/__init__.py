"""Deployments and their pods: facts, the objects that canaryd makes, and which writes bring them into shape.

Everything in here is pure: objects of the API come in as plain JSON, and nothing is asked or written.
"""
