"""Noise schedules, guidance and samplers: all that turns a denoising model into pictures."""
