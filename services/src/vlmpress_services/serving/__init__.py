"""One gRPC server for any subset of the services, and what keeps its models."""
