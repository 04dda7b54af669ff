"""What curation and training agree on. The only room of `curate` that `pretrain` may enter."""
