"""What several runs say together: steps and examples to a goal, fits, predictions."""
