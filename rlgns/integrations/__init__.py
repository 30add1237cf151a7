"""The noise scale in training loops of other libraries: PyTorch Lightning, Hugging Face's Trainer, and Accelerate."""
