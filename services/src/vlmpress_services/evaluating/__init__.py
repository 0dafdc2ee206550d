"""Answers and scores the questions of a dataset, in shards that any worker may do."""
