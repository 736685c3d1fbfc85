"""The page: what a person sees of editcore. Never imports torch; the engine works in a process of its own."""
