"""Training with visual tokens pooled inside the LLM, stage by stage (LLaVolta)."""
