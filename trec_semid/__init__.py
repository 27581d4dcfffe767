"""trec_semid: an industrial-scale semantic-ID recommender on TorchRec."""

__version__ = "0.1.0"
