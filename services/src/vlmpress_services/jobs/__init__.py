"""Long work: the table of jobs, the processes that do them, and what each kind does."""
