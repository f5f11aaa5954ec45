"""What `remote` and `flowrl serve-rewards` agree upon, without torch: a server's own process needs none."""

VERSION = 1
SCORE, REWARDS = "/v1/score", "/v1/rewards"
JSON, TENSORS = "application/json", "application/x-safetensors"
REQUEST_ID = "X-Request-Id"
