"""Data: the MIntRec builder, safe feature files and the collator."""
