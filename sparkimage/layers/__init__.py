"""What lies in the layers of an image, read without starting it."""
