"""The jobs of the `lossopt` command, one function each: it takes the words after its name; it alone prints."""
