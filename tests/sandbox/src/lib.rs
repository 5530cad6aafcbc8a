//! A strict local AWS for exactly what bastion uses. Not shipped in the image.
