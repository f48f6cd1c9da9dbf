"""Noise schedules, losses and samplers: torch and diffusers' schedulers only."""
