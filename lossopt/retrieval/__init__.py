"""Everything after training: embeddings, index, metrics, evaluation."""
