"""One file per way to get content vectors: arrays that exist, and encoders of text, images, attributes."""
