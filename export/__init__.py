"""The training side: synthesis, model, training, evaluation and conversion of the mask network. Never part of the wheel."""
