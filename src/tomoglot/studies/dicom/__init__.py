"""Raw DICOM in: files found and parsed safely, grouped into volumes by geometry, checked, named, read on demand."""
