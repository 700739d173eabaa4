"""What a matching takes, before it begins: seconds, memory, and the pieces that workers share."""
