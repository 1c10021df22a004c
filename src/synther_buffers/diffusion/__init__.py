"""The diffusion model: preconditioned denoiser, loss, training and samplers; independent of RL."""
