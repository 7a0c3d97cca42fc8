"""gRPC: the only place, beside the client, that knows it."""
