"""The kind `glae`: a generative language autoencoder, one vector a text, from which the text is decoded."""
