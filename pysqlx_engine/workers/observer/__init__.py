"""The observer: the process that looks at a run once a second and shows it, as a web page and as metrics.

It is apart, so that neither the coordinator nor the supervisor ever waits for a browser: it asks them by the sockets
that `pysqlx-ctl` uses, and works as well for a run that somebody else has started.
"""
