"""What is done to a finished model: dead states, robustness, fine-tuning."""
