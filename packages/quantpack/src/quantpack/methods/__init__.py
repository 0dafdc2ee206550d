"""How codes are found: round to nearest, GPTQ, AWQ, SmoothQuant, MBQ, behind one interface."""
