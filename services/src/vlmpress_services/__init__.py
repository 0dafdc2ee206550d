"""gRPC servers, Ray workers and the main job of vlmpress."""
