"""Studies on several machines: shares of an array, and what schedules them."""
