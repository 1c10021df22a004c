"""The diffusion model: preconditioned denoiser, loss, training and samplers. Knows nothing of RL."""
