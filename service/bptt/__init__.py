"""The learning server: engine, storage, metrics, RPC, client and command line."""
