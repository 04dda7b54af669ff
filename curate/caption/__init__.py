"""More words for a picture, appended to `captions`; the alt-text is never overwritten."""
