"""Noise schedules, guidance and samplers: everything that turns a denoising model into images."""
