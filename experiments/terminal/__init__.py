"""What is typed and shown in a terminal: the commands by what they do, and how all of them print."""
