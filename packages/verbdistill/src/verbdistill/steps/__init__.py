"""The three steps of VLsI."""
