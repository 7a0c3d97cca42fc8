"""The gRPC server. Only this package and `bptt.client` import gRPC."""
