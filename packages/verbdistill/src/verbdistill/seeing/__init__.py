"""What layers say, how students answer, and pictures of both."""
