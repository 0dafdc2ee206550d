"""Edge models from trained parts."""
