"""Old features on disk, joined to training images by row, and the class statistics made from them."""
