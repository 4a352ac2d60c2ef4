"""Writing data sets: glyphs, ORL faces, image folders, evaluation trees, lists of GLDv2."""
