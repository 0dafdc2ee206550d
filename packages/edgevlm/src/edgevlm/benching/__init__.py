"""Times models at full shape side by side, each in a process of its own."""
