"""Where the parts of a vision-language model are, and what its layers say of a batch's response tokens."""
