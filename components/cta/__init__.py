"""The kind `cta`: a continuous text autoencoder of convolutions."""
