"""Many shards in place of one index, and many machines in place of one.

`layout` and `shards` need no cluster: a directory of shards, and the exact search over all of them. `ray` and `spark`
encode and build on a cluster; `ray` searches on one too. Each is imported only where it is used.
"""
