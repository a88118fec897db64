"""What whole runs cost: when they are stopped, when many workers share them, when they are large."""
