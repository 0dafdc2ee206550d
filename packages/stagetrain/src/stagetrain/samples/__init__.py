"""From records to batches: grouping, order, text and labels, images."""
