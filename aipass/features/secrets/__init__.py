"""What is said to others holds no secrets, and is not longer than anybody reads."""
