"""How canaryd speaks with a Kubernetes API server: client, informers, lease. Objects are plain JSON, as on the wire.

`kinds` names the resources, `client` asks and writes, `informer` keeps copies that a watch holds up to date, `lease`
elects a leader. The `kubernetes` package loads the configuration and opens the connections; it is imported when a
connection is made, never when a module here is.
"""
