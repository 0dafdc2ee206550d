"""The edge model as an ordinary Hugging Face model."""
