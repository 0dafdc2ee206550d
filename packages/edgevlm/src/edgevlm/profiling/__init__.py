"""What models cost, from their configuration and measured."""
