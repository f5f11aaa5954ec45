"""`flowrl serve-rewards`: rewards over HTTP. config -> socket (connections, app) -> pool -> worker processes."""
