"""Which teacher targets each student target learns from (VLsI, Section 3.2 and Table 4e)."""
