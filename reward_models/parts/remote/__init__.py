"""How samples travel to a server of rewards and scores back."""
