"""Step distillation: a student that needs few steps, and one pass for each, learns from a teacher."""
