"""Darkroom: image generation with diffusers as a serverless, queue-triggered service on AWS."""
