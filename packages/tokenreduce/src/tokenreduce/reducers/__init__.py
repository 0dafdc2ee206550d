"""Ways to reduce visual tokens, all with the interface of `tokenreduce.reducing`; import the one you need."""
