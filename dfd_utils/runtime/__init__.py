"""Atomic files, worker processes, devices: independent of images and models."""
