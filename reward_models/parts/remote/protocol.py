"""What `remote` and `flowrl serve-rewards` agree on, without torch: a server's own process does not need it."""

VERSION = 1
SCORE, REWARDS = "/v1/score", "/v1/rewards"
JSON, TENSORS = "application/json", "application/x-safetensors"
REQUEST_ID = "X-Request-Id"
