"""What makes frozen Transformers models quick, and where their parts are."""
