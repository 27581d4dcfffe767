"""Forms of raw data: own tables, MovieLens, RecBole atomic files, Amazon reviews 2014."""
