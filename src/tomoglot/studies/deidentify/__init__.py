"""Headers, pixels and texts without identity: the profile of DICOM PS3.15, and rules for what people write.

Nothing here makes a person unrecognisable from the picture itself: a face can be drawn from a head scan.
"""
