"""A study on several machines: who samples which shard, on which of them."""
