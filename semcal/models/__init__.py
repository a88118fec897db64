"""Who answers: a checkpoint, or a model behind an endpoint. Knows no dataset."""
