"""Finds how coarse each matrix may be: AGQ and weight scaling against a floor of the accuracy."""
