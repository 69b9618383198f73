"""The filesystem feature: changes of files in the tree become facts."""
