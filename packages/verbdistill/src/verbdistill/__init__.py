"""Layer-wise distillation of vision-language models through verbalizers (VLsI)."""
