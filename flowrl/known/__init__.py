"""Published models: the configs of their components, facts that hold without a download."""
