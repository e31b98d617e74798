"""What a run learned, in the forms that people and machines read. Everything here returns; cli prints."""
