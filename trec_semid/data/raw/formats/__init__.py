"""Files of any format as streams of Arrow tables."""
