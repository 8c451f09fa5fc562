"""What is stored where: bytes on one side, named sections and tensor rows on the other."""
