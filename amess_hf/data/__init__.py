"""Data: the MIntRec builder, safe feature files, label descriptions, the demo corpus and the collator."""
