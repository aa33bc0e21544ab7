"""From a decision record to what a person reads in a chat: the same facts for every channel. Pure.

`kinds` gives the words for kinds of decision and says which record goes where, `notice` chooses and words the facts,
`blocks` lays them out for Slack, `cloudevent` for programs, `templates` for people who want other words. Never sends
anything and never asks for the time.
"""
