"""What a model does on calibration data, layer by layer, and which layers share an input."""
