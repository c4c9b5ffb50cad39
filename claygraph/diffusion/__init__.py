"""What the stages compute: samplers, schedules, encoders, adapters and the denoiser."""
