"""`flowrl serve-rewards`: rewards behind HTTP. config -> listen (app, gate) -> pool -> worker processes."""
