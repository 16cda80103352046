"""Store to tensors: samples, crops, augmentation, masks, text and the loader."""
